"""rCM: sCM with DMD as a regulariser (Zheng et al. 2025, "Large Scale Diffusion Distillation via Score-Regularized
Continuous-Time Consistency", arXiv 2510.08431). It combines sCM and DMD on one student.

sCM follows the teacher's trajectories (forward divergence: all modes, but blurred samples). DMD improves the student's
own samples (reverse divergence: sharp samples, but fewer modes). The student minimises the weighted sum of both losses.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from distill.config.typed import Checked, InvalidOption, option
from distill.data.batch import Batch
from distill.methods.base import Distiller, Logs
from distill.methods.dmd import DMD
from distill.methods.dmd_options import DMDOptions
from distill.methods.scm import SCM, SCMOptions
from teachers.core.denoiser import Denoiser
from teachers.core.teacher import Teacher


@dataclass
class RCMOptions(Checked):
    """`method:` in a recipe with `name: rcm`."""

    dmd_weight: float = option(
        10.0,
        "Weight of DMD's loss (a mean over elements) relative to sCM's loss (a sum over elements).",
        above=0,
        at_most=1e6,
    )
    scm: SCMOptions = option(factory=SCMOptions, help="Options of the sCM loss.")
    dmd: DMDOptions = option(factory=DMDOptions, help="Options of the DMD loss.")

    def check(self) -> None:
        if self.scm.guidances:
            raise InvalidOption(
                "scm.guidances",
                f"must be empty, because the fake score supports one guidance scale, got {list(self.scm.guidances)}",
            )
        if self.dmd.fake_score_alignment and self.scm.adaptation_steps:
            raise InvalidOption(
                "dmd.fake_score_alignment",
                "must be 0 with {} above 0, because the student's time input is rescaled, got "
                f"{self.dmd.fake_score_alignment}",
                ["scm.adaptation_steps"],
            )


@contextmanager
def _keys_of(part: str) -> Iterator[None]:
    """A context in which errors of a part name its options as the recipe does: method.dmd.timesteps, for example."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("method.", f"method.{part}.")) from error


class RCM(Distiller):
    """Score-regularised consistency model: a student of one or two steps.

    Needs latents with their captions. See the module's docstring for the source, and
    `distill.methods.base.Distiller` for the arguments.
    """

    Options = RCMOptions
    PHASES = ("fake_score", "student")
    options: RCMOptions

    def __init__(self, teacher: Teacher, guidance: float, options: RCMOptions, student: Denoiser | None = None) -> None:
        super().__init__(teacher, guidance, options, student)
        # A tuple, not submodules: the student and the networks below are registered only once.
        with _keys_of("scm"):
            scm = SCM(teacher, guidance, options.scm, self.student)
        with _keys_of("dmd"):
            dmd = DMD(teacher, guidance, options.dmd, self.student)
        self.parts = scm, dmd
        self.log_variance, self.fake_score, self.discriminator = scm.log_variance, dmd.fake_score, dmd.discriminator

    @classmethod
    def needs_latents(cls, options: RCMOptions) -> bool:
        return True

    @classmethod
    def check_run(cls, options: RCMOptions, guidance: float) -> None:
        with _keys_of("scm"):
            SCM.check_run(options.scm, guidance)
        with _keys_of("dmd"):
            DMD.check_run(options.dmd, guidance)

    @classmethod
    def pairs(cls, options: RCMOptions) -> tuple[int, int]:
        return DMD.pairs(options.dmd)

    def phases(self, step: int) -> tuple[str, ...]:
        """sCM's phases during its adaptation steps, then DMD's phases."""
        scm, dmd = self.parts
        return scm.phases(step) if step < self.options.scm.adaptation_steps else dmd.phases(step)

    def networks(self) -> Mapping[str, Sequence[nn.Module]]:
        scm, dmd = self.parts
        return {**dmd.networks(), **scm.networks()}

    def forward(self, phase: str, batch: Batch, step: int) -> tuple[Tensor, Logs]:
        scm, dmd = self.parts
        if phase == "fake_score":
            return dmd.forward(phase, batch, step)
        loss, logs = scm.forward(phase, batch, step)
        if step < self.options.scm.adaptation_steps:
            return loss, logs
        regulariser, dmd_logs = dmd.forward(phase, batch, step)
        logs |= {f"dmd_{key}": value for key, value in dmd_logs.items()}
        return loss + self.options.dmd_weight * regulariser, logs

    def averages(self) -> Sequence[tuple[Denoiser, float]]:
        return self.parts[1].averages()

    def sampling_schedules(self) -> list[list[float]]:
        return self.parts[0].sampling_schedules()

    def step_counts(self, times: Sequence[float]) -> tuple[int, ...]:
        return self.parts[0].step_counts(times)

    def preview_models(self) -> Mapping[str, Denoiser]:
        return self.parts[1].preview_models()

    def startup_messages(self) -> Sequence[str]:
        return self.parts[0].startup_messages()
