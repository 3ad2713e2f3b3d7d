"""The options of DMD."""

from dataclasses import dataclass
from typing import Literal

from distill.config.typed import InvalidOption, option
from distill.methods.fake_score_options import FakeScoreOptions


@dataclass
class DMDOptions(FakeScoreOptions):
    """`method:` in a recipe with `name: dmd`."""

    weighting: Literal["dmd", "karras", "uniform"] = option(
        "dmd", "Weight of the gradient: dmd: 1 / mean|x - x0_real| of each sample; karras: 1 / sin^2 t; uniform: 1."
    )
    guidance_weight: float = option(
        1.0,
        "Weight of guidance in the loss, whose guidance scale is 1 + guidance_weight * (teacher.guidance - 1).",
        at_least=0,
        at_most=1000,
    )
    guidance_noise: Literal["shared", "own", "remaining"] = option(
        "shared",
        "Noise of guidance's part of the gradient. shared: that of distribution matching, as in DMD; own: independent, "
        "within guidance_noise_range; remaining: also below the noise level of the student's step (Decoupled DMD).",
    )
    guidance_noise_range: tuple[float, float] = option(
        (0.02, 0.98),
        "Noise levels of guidance's part of the gradient, as noise_range; not used with guidance_noise=shared.",
        at_least=0,
        at_most=1,
        order="increase",
    )
    regression_weight: float = option(
        0.0,
        "Weight of the regression loss on teacher pairs; 0: none. DMD uses 0.25, DMD2 none.",
        at_least=0,
        at_most=1e6,
    )
    regression_distance: Literal["lpips", "latent"] = option(
        "lpips", "Distance of the regression loss: LPIPS of decoded images, or mean squared error of latents."
    )
    regression_pairs: int = option(2000, "Number of teacher pairs of the regression loss.", at_least=0, at_most=10**9)
    regression_teacher_steps: int = option(20, "The teacher's ODE steps for each pair.", at_least=1, at_most=10_000)

    def check(self) -> None:
        if self.regression_weight and self.regression_pairs < 1:
            raise InvalidOption("regression_pairs", "must be at least 1 if {} is above 0, got 0", ["regression_weight"])
        if self.guidance_noise != "shared" and not self.guidance_weight:
            raise InvalidOption(
                "guidance_weight", f"must be above 0 with {{}}={self.guidance_noise}, got 0", ["guidance_noise"]
            )
        super().check()
