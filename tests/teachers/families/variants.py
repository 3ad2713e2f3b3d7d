"""Further tiny pipelines: other predictions, schedules and output channels than the published models of each family."""

from diffusers import DDPMPipeline, DDPMScheduler, EDMEulerScheduler, UNet2DModel

from tests.teachers.tiny_pipelines import BUILDERS, stable_diffusion, stable_diffusion_xl

PIXEL = {
    "sample_size": 16,
    "block_out_channels": (8, 8),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def pixels(out_channels=3, in_channels=3, **schedule):
    """A function of a tokenizer that builds an unconditional pixel pipeline."""

    def build(tokenizer):
        network = UNet2DModel(in_channels=in_channels, out_channels=out_channels, **PIXEL)
        return DDPMPipeline(network, DDPMScheduler(**schedule))

    return build


def latents(**schedule):
    return lambda tokenizer: stable_diffusion(tokenizer, **schedule)


ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
VARIANTS = BUILDERS | {
    "Stable Diffusion, v": ("stable_diffusion", latents(prediction_type="v_prediction")),
    "Stable Diffusion, sample": ("stable_diffusion", latents(prediction_type="sample")),
    "Stable Diffusion, EDM": ("stable_diffusion", lambda tokenizer: stable_diffusion(tokenizer, EDMEulerScheduler())),
    "CosXL": (
        "stable_diffusion_xl",
        lambda tokenizer: stable_diffusion_xl(
            tokenizer,
            EDMEulerScheduler(
                sigma_data=1.0, sigma_max=120.0, sigma_schedule="exponential", prediction_type="v_prediction"
            ),
        ),
    ),
    "pixels, v": ("unconditional", pixels(prediction_type="v_prediction")),
    "pixels, v, zero SNR": ("unconditional", pixels(**ZERO_SNR)),
    "pixels, sample": ("unconditional", pixels(prediction_type="sample")),
    "pixels, learned variance": ("unconditional", pixels(6, variance_type="learned_range")),
    "pixels, grey": ("unconditional", pixels(1, 1)),
    "pixels, cosine": ("unconditional", pixels(beta_schedule="squaredcos_cap_v2")),
}
