"""rCM: sCM with DMD as its regulariser (Zheng et al. 2025, "Large Scale Diffusion Distillation via Score-Regularized
Continuous-Time Consistency", arXiv 2510.08431), by composing the two methods of this project around one student.

sCM follows the teacher's trajectories (forward divergence: it covers every mode and errs by blur), DMD sharpens the
student's own samples (reverse divergence: high quality, fewer modes). The student minimises the sum of both losses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from distill.data.batch import Batch
from distill.methods.base import Distiller, Logs
from distill.methods.dmd import DMD, DMDOptions
from distill.methods.scm import SCM, SCMOptions
from teachers.core.denoiser import Denoiser
from teachers.core.teacher import Teacher


@dataclass
class RCMOptions:
    dmd_weight: float = 10.0  # of DMD's loss, a mean over elements, beside sCM's, a sum over them
    scm: SCMOptions = field(default_factory=SCMOptions)
    dmd: DMDOptions = field(default_factory=DMDOptions)


class RCM(Distiller):
    """One or two steps, as sCM. Needs latents with their captions."""

    Options = RCMOptions
    PHASES = ("fake_score", "student")
    options: RCMOptions

    def __init__(self, teacher: Teacher, guidance: float, options: RCMOptions, student: Denoiser | None = None) -> None:
        super().__init__(teacher, guidance, options, student)
        if options.dmd_weight <= 0:
            raise ValueError(f"method.dmd_weight is {options.dmd_weight}; it has to be positive (without DMD, use scm)")
        if options.scm.guidances:
            raise ValueError("method.scm.guidances has to be empty: rcm's fake score knows one guidance scale only")
        # Not submodules: what they own beside the student is registered below, once.
        self.parts = (
            SCM(teacher, guidance, options.scm, self.student),
            DMD(teacher, guidance, options.dmd, self.student),
        )
        scm, dmd = self.parts
        self.log_variance, self.fake_score, self.discriminator = scm.log_variance, dmd.fake_score, dmd.discriminator

    @classmethod
    def needs_latents(cls, options: RCMOptions) -> bool:
        return True

    @classmethod
    def pairs(cls, options: RCMOptions) -> tuple[int, int]:
        return DMD.pairs(options.dmd)

    def phases(self, step: int) -> tuple[str, ...]:
        """sCM's student adapts alone; then the two time scales of DMD."""
        scm, dmd = self.parts
        return scm.phases(step) if step < self.options.scm.adaptation_steps else dmd.phases(step)

    def networks(self) -> Mapping[str, Sequence[nn.Module]]:
        scm, dmd = self.parts
        return {**dmd.networks(), **scm.networks()}

    def forward(self, phase: str, batch: Batch, step: int) -> tuple[Tensor, Logs]:
        scm, dmd = self.parts
        if phase == "fake_score":
            return dmd(phase, batch, step)
        loss, logs = scm(phase, batch, step)
        if step < self.options.scm.adaptation_steps:
            return loss, logs
        regulariser, more = dmd(phase, batch, step)
        return loss + self.options.dmd_weight * regulariser, logs | {f"dmd_{key}": value for key, value in more.items()}

    def candidate_times(self) -> list[list[float]]:
        return self.parts[0].candidate_times()

    def step_counts(self, times: Sequence[float]) -> tuple[int, ...]:
        return self.parts[0].step_counts(times)

    def preview_models(self) -> Mapping[str, Denoiser]:
        return self.parts[1].preview_models()

    def notes(self) -> Sequence[str]:
        return self.parts[0].notes()
