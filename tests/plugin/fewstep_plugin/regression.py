"""Knowledge distillation (Luhman & Luhman 2021, arXiv 2101.02388): regression of one step on the teacher's samples."""

from dataclasses import dataclass

from distill.data.batch import Batch
from distill.methods.base import Distiller
from teachers.core.sampling import sample


@dataclass
class RegressionOptions:
    pairs: int = 1000
    teacher_steps: int = 50


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
