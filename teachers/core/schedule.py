"""The training noise schedule of a diffusers scheduler as a `NoisePath`, for any solver that the pipeline uses."""

import math
from typing import Any, cast

from diffusers import DDPMScheduler

from teachers.core.denoiser import Prediction
from teachers.core.trigflow import Flow, NoisePath, VariancePreserving


def variance_preserving(scheduler: Any, sigma_data: float) -> VariancePreserving:
    """The path of a scheduler that is built from betas.

    Args:
        scheduler: A diffusers scheduler; its config describes the betas.
        sigma_data: Standard deviation of native data.

    Returns:
        The path with the scheduler's own `alphas_cumprod`.
    """
    return VariancePreserving(DDPMScheduler.from_config(scheduler.config).alphas_cumprod, sigma_data)


def schedule(scheduler: Any, sigma_data: float, tokens: int) -> tuple[NoisePath, Prediction]:
    """The path and prediction type of a pipeline's scheduler.

    Args:
        scheduler: A diffusers scheduler.
        sigma_data: Standard deviation of native data.
        tokens: Number of image tokens of the transformer, which dynamic shifting depends on.

    Returns:
        The path, and what the network predicts.

    Raises:
        ValueError: If the config describes neither betas nor a rectified flow.
    """
    config = scheduler.config
    if config.get("use_flow_sigmas"):  # a solver for betas that is configured for a flow model
        return Flow(config["num_train_timesteps"], sigma_data, config["flow_shift"]), "flow_prediction"
    if "stochastic_sampling" in config or "shift" in config:
        return Flow(config["num_train_timesteps"], sigma_data, flow_shift(config, tokens)), "flow_prediction"
    if "trained_betas" not in config:
        raise ValueError(
            f"{type(scheduler).__name__} describes neither betas nor a rectified flow; "
            "use the scheduler that the network was trained with"
        )
    return variance_preserving(scheduler, sigma_data), cast(Prediction, config.get("prediction_type", "epsilon"))


def flow_shift(config: Any, tokens: int) -> float:
    """The timestep shift of a flow-matching scheduler.

    Args:
        config: The scheduler's config.
        tokens: Number of image tokens. With dynamic shifting the shift depends on it.

    Returns:
        The factor `shift` of `Flow`.
    """
    if not config.get("use_dynamic_shifting"):
        return float(config["shift"])
    few, many = config["base_image_seq_len"], config["max_image_seq_len"]
    slope = (config["max_shift"] - config["base_shift"]) / (many - few)
    mu = config["base_shift"] + slope * (tokens - few)
    return float(mu) if config.get("time_shift_type") == "linear" else math.exp(mu)
