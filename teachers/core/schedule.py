"""A stock scheduler's training schedule as a `NoisePath`, whichever solver the pipeline happens to carry."""

import math
from typing import Any

from diffusers import DDPMScheduler

from teachers.core.denoiser import Prediction
from teachers.core.trigflow import Flow, NoisePath, VariancePreserving


def variance_preserving(scheduler: Any, sigma_data: float) -> VariancePreserving:
    """The path of a scheduler that is built from betas: the table that its config describes."""
    return VariancePreserving(DDPMScheduler.from_config(scheduler.config).alphas_cumprod, sigma_data)


def schedule(scheduler: Any, sigma_data: float, tokens: int) -> tuple[NoisePath, Prediction]:
    """(path, prediction type) of a pipeline's scheduler. `tokens`: patches of a picture, which some shifts depend on.

    ValueError where its config describes neither a variance-preserving table nor a rectified flow.
    """
    config = scheduler.config
    if config.get("use_flow_sigmas"):  # a solver for betas, put to work on a flow
        return Flow(config["num_train_timesteps"], sigma_data, config["flow_shift"]), "flow_prediction"
    if "stochastic_sampling" in config or "shift" in config:
        return Flow(config["num_train_timesteps"], sigma_data, flow_shift(config, tokens)), "flow_prediction"
    if "trained_betas" not in config:
        raise ValueError(
            f"{type(scheduler).__name__} is neither a table of betas nor a rectified flow; "
            "give the pipeline the scheduler that it was trained with"
        )
    return variance_preserving(scheduler, sigma_data), config.get("prediction_type", "epsilon")


def flow_shift(config: Any, tokens: int) -> float:
    """How far a rectified flow's solver shifts its steps to the noise; with dynamic shifting by the picture's size."""
    if not config.get("use_dynamic_shifting"):
        return config["shift"]
    few, many = config["base_image_seq_len"], config["max_image_seq_len"]
    slope = (config["max_shift"] - config["base_shift"]) / (many - few)
    mu = config["base_shift"] + slope * (tokens - few)
    return mu if config.get("time_shift_type") == "linear" else math.exp(mu)
