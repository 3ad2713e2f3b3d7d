"""Knowledge distillation (Luhman & Luhman 2021, arXiv 2101.02388): regression of one step on the teacher's samples."""

from dataclasses import dataclass

from distill.config.typed import option
from distill.data.batch import Batch
from distill.methods.base import Distiller
from teachers.core.sampling import sample


@dataclass
class RegressionOptions:
    pairs: int = option(1000, "Number of teacher pairs.", at_least=1)
    teacher_steps: int = option(50, "The teacher's ODE steps for each pair.", at_least=1, at_most=10_000)


class Regression(Distiller):
    Options = RegressionOptions

    @classmethod
    def pairs(cls, options: RegressionOptions) -> tuple[int, int]:
        return options.pairs, options.teacher_steps

    def forward(self, phase: str, batch: Batch, step: int):
        noise, endpoint, cond = batch.pairs()
        x = sample(self.student, noise, [self.student.path.t_max], cond, batch.rng.normal)
        loss = (x - endpoint).square().mean()
        return loss, {"loss": loss.detach()}
