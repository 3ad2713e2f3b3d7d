"""The options that methods with a fake score share."""

from dataclasses import dataclass
from typing import Literal

from distill.config.typed import Checked, InvalidOption, option


@dataclass
class FakeScoreOptions(Checked):
    """Options of the fake score, of the noise levels and of the discriminator; see `fake_score.FakeScoreDistiller`."""

    timesteps: tuple[int, ...] = option(
        (),
        "Native timesteps of the student's steps, decreasing; []: one step at the end of the schedule.",
        at_least=1,
        at_most=100_000,
        order="decrease",
    )
    fake_score_updates: int = option(2, "Fake-score updates for each student update.", at_least=1, at_most=1000)
    noise_levels: Literal["timesteps", "karras"] = option(
        "timesteps", "Noise levels of the losses: uniform in the teacher's timesteps, or on Karras' sigma grid."
    )
    noise_range: tuple[float, float] = option(
        (0.02, 0.98),
        "The part of the noise levels that is used, from 0 (clean) to 1 (pure noise).",
        at_least=0,
        at_most=1,
        order="increase",
    )
    fake_score_loss: Literal["velocity", "epsilon", "sample"] = option(
        "velocity", "The prediction whose squared error trains the fake score."
    )
    fake_score_guidance: float = option(
        1.0, "Classifier-free guidance scale of the fake score; 1.0 means none.", at_least=1, at_most=1000
    )
    fake_score_alignment: float = option(
        0.0,
        "How far the fake score's weights move towards the student's after each student update, from 0 (not at all) to "
        "1 (all the way); 1 - lambda of SenseFlow.",
        at_least=0,
        at_most=1,
    )
    gan_weight: float = option(
        0.0,
        "Weight of the student's GAN loss; 0: none. DMD2 uses 1e-3 to 5e-3. Needs data.images.",
        at_least=0,
        at_most=1e6,
    )
    discriminator_weight: float = option(
        0.01, "Weight of the discriminator's loss relative to the fake score's.", at_least=0, at_most=1e6
    )
    gan_features: Literal["fake_score", "teacher"] = option(
        "fake_score", "The network whose features the discriminator reads."
    )
    gan_noise_range: tuple[float, float] = option(
        (0.0, 1.0),
        "Noise levels of the discriminator's inputs, as noise_range.",
        at_least=0,
        at_most=1,
        order="increase",
    )
    r1_weight: float = option(
        0.0, "Weight of the R1 penalty on real images; 0: none. Needs gan_weight.", at_least=0, at_most=1e9
    )

    def check(self) -> None:
        if self.gan_weight and not self.discriminator_weight:
            raise InvalidOption("discriminator_weight", "must be positive if {} is above 0, got 0", ["gan_weight"])
        if self.r1_weight and not self.gan_weight:
            raise InvalidOption(
                "r1_weight", f"must be 0 without a discriminator ({{}} is 0), got {self.r1_weight}", ["gan_weight"]
            )
