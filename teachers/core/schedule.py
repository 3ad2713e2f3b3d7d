"""The training noise schedule of a diffusers scheduler as a `NoisePath`, for any solver that the pipeline uses.

The scheduler's own `alphas_cumprod` is the schedule: its config alone lacks the defaults of its class, and tables that
`rescale_betas_zero_snr` or `snr_shift_scale` change afterwards.
"""

import math
from numbers import Real
from typing import Any, cast, get_args

import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    CosineDPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
)
from torch import Tensor

from teachers.core.cosine_path import Cosine
from teachers.core.denoiser import EDM, Prediction
from teachers.core.edm_path import Edm
from teachers.core.noise_path import NoisePath
from teachers.core.scheduler_config import config_of, flow_shift, own_value, positive, prediction_type
from teachers.core.trigflow import Flow, VariancePreserving

FLOW_SCHEDULERS = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler)
EDM_SCHEDULERS = (EDMEulerScheduler, EDMDPMSolverMultistepScheduler)


def schedule(
    scheduler: Any,
    sigma_data: float,
    tokens: int = 1,
    flow: bool = True,
    variance_preserving: bool = True,
    cosine: bool = False,
    edm: bool = False,
) -> tuple[NoisePath, Prediction]:
    """The path and prediction type of a pipeline's scheduler.

    Args:
        scheduler: A diffusers scheduler.
        sigma_data: Standard deviation of native data.
        tokens: Number of tokens of the transformer for one sample, which dynamic shifting depends on.
        flow: Whether the pipeline can sample a rectified flow.
        variance_preserving: Whether the pipeline can sample a variance-preserving schedule.
        cosine: Whether the pipeline can sample TrigFlow's own schedule.
        edm: Whether the pipeline can sample EDM's schedule, with its preconditioning.

    Returns:
        The path, and what the network predicts.

    Raises:
        ValueError: If the schedule is none of these, if the pipeline cannot sample
            it, or if the network's prediction is undefined at its last noise level.
    """
    if scheduler is None:
        raise ValueError("the pipeline's scheduler must be a class of diffusers or of a package that is imported")
    if isinstance(scheduler, CMStochasticIterativeScheduler):
        raise ValueError(
            "the pipeline's scheduler must be that of a diffusion model, got CMStochasticIterativeScheduler, which "
            "samples a consistency model: that needs one or two steps already"
        )
    if is_flow(scheduler) and flow:
        return _flow(scheduler, sigma_data, tokens)
    if cosine and isinstance(scheduler, CosineDPMSolverMultistepScheduler):
        return _cosine(scheduler, sigma_data)
    if edm and is_edm(scheduler):
        return _edm(scheduler, sigma_data)
    table = alphas_cumprod(scheduler)
    if table is None or not variance_preserving:
        kinds = ["variance preserving (alphas_cumprod)"] * variance_preserving + ["a rectified flow"] * flow
        kinds += ["that of CosineDPMSolverMultistepScheduler"] * cosine + ["EDM's (EDMEulerScheduler)"] * edm
        raise ValueError(
            f"the schedule of {type(scheduler).__name__} is not supported: this family's schedules must be "
            f"{' or '.join(kinds)}"
        )
    return VariancePreserving(table, sigma_data), _prediction(scheduler, table)


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler integrates a rectified flow: a flow-matching scheduler, or a solver with flow sigmas."""
    solver = hasattr(scheduler, "alphas_cumprod") and config_of(scheduler).get("use_flow_sigmas")
    return isinstance(scheduler, FLOW_SCHEDULERS) or bool(solver)


def is_edm(scheduler: Any) -> bool:
    """Whether a scheduler samples a network with EDM's preconditioning."""
    return isinstance(scheduler, EDM_SCHEDULERS)


def edm_options(scheduler: Any) -> dict[str, Any]:
    """The constructor arguments that EDM's schedulers have in common, as `scheduler` has them."""
    keys = ("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "num_train_timesteps", "prediction_type", "rho")
    return {key: scheduler.config[key] for key in keys}


def data_scale(scheduler: Any, sigma_data: float | None, default: float) -> float:
    """The standard deviation of a teacher's native data.

    Args:
        scheduler: The pipeline's scheduler.
        sigma_data: `teacher.sigma_data` of a recipe; None: that of EDM's scheduler, else `default`.
        default: The family's.

    Raises:
        ValueError: If it is not positive and finite, or EDM's scheduler has another one, which is a constant of its
            preconditioning.
    """
    number = isinstance(sigma_data, Real) and not isinstance(sigma_data, bool)
    if sigma_data is not None and not (number and 0 < sigma_data < math.inf):
        raise ValueError(f"sigma_data must be positive and finite, got {sigma_data!r}")
    if not is_edm(scheduler):
        return default if sigma_data is None else sigma_data
    own = float(positive(scheduler, "sigma_data"))
    if sigma_data is not None and sigma_data != own:
        raise ValueError(
            f"teacher.sigma_data must be null or {own:g}, that of the {type(scheduler).__name__}, got {sigma_data:g}"
        )
    return own


def alphas_cumprod(scheduler: Any) -> Tensor | None:
    """The table of a variance-preserving scheduler, as the scheduler itself computed it.

    Args:
        scheduler: A diffusers scheduler.

    Returns:
        Cumulative products of alpha at the timesteps of the network, (num_train_timesteps,); None if the scheduler has
        another kind of schedule.
    """
    config, table = config_of(scheduler), getattr(scheduler, "alphas_cumprod", None)
    # Schedulers without a prediction type belong to other kinds of models, and continuous timesteps are 0.25 log sigma.
    continuous = config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"
    if not isinstance(table, Tensor) or is_flow(scheduler) or "prediction_type" not in config or continuous:
        return None
    begins_earlier = isinstance(scheduler, LCMScheduler) and config["num_train_timesteps"] < len(table)
    if len(table) != config["num_train_timesteps"] and not begins_earlier:  # LCMScheduler then begins within the table
        raise ValueError(
            f"num_train_timesteps of {type(scheduler).__name__} must be the number of its betas, {len(table)}, "
            f"got {config['num_train_timesteps']}"
        )
    if config.get("rescale_betas_zero_snr") and table[-1] >= table[-2]:
        # Some solvers replace the last zero by 2^-24, which can be more than the noise level before it.
        table = torch.cat([table[:-1], table.new_zeros(1)])
    return table


def _prediction(scheduler: Any, table: Tensor) -> Prediction:
    name = prediction_type(scheduler)
    known = [kind for kind in get_args(Prediction) if kind not in ("flow_prediction", *EDM)]
    if name not in known:
        raise ValueError(
            f"prediction_type of {type(scheduler).__name__} must be one of {', '.join(known)} on a "
            f"variance-preserving schedule, got {name!r}"
        )
    zero = bool(scheduler.config.get("rescale_betas_zero_snr")) or float(table[-1]) <= 0
    if zero and name == "epsilon":
        raise ValueError(
            f"prediction_type of {type(scheduler).__name__} must be v_prediction or sample with zero terminal SNR "
            "(rescale_betas_zero_snr), where epsilon says nothing about the image, got 'epsilon'"
        )
    return cast(Prediction, name)


def _flow(scheduler: Any, sigma_data: float, tokens: int) -> tuple[NoisePath, Prediction]:
    config = scheduler.config
    name = config.get("prediction_type", "flow_prediction")
    if name != "flow_prediction":
        raise ValueError(
            f"prediction_type of {type(scheduler).__name__} must be flow_prediction on a rectified flow, got {name!r}"
        )
    if own_value(scheduler, "invert_sigmas"):
        raise ValueError(
            f"invert_sigmas of {type(scheduler).__name__} must be false: the timesteps of a network must grow with the "
            "noise"
        )
    shift, terminal = flow_shift(scheduler, tokens), own_value(scheduler, "shift_terminal") or None
    if terminal is not None and not (isinstance(terminal, int | float) and 0 < terminal < 1):
        raise ValueError(
            f"shift_terminal of {type(scheduler).__name__} must be null or a number above 0 and below 1, got "
            f"{terminal!r}"
        )
    return Flow(config["num_train_timesteps"], sigma_data, shift, terminal), "flow_prediction"


def _cosine(scheduler: Any, sigma_data: float) -> tuple[NoisePath, Prediction]:
    config = scheduler.config
    for key, value in {"prediction_type": "v_prediction", "sigma_data": 1.0, "final_sigmas_type": "zero"}.items():
        if config.get(key) != value:
            raise ValueError(f"{key} of {type(scheduler).__name__} must be {value}, got {config.get(key)!r}")
    path = Cosine(config["sigma_min"], config["sigma_max"], config["num_train_timesteps"], sigma_data)
    return path, "v_prediction"


def _edm(scheduler: Any, sigma_data: float) -> tuple[NoisePath, Prediction]:
    config, kind = scheduler.config, type(scheduler).__name__
    prediction = f"edm_{prediction_type(scheduler)}"
    if prediction not in EDM:
        raise ValueError(
            f"prediction_type of {kind} must be epsilon or v_prediction, got {config['prediction_type']!r}"
        )
    low, high, rho = (positive(scheduler, key) for key in ("sigma_min", "sigma_max", "rho"))
    if low >= high:
        raise ValueError(f"sigma_min of {kind} must be below its sigma_max {high:g}, got {low:g}")
    if (count := config["num_train_timesteps"]) < 2:
        raise ValueError(f"num_train_timesteps of {kind} must be at least 2, the ends of its grid, got {count}")
    grid = None if config["sigma_schedule"] == "exponential" else rho
    path = Edm(low, high, count, data_scale(scheduler, sigma_data, 1.0), grid)
    return path, cast(Prediction, prediction)


def betas(table: Tensor) -> list[float]:
    """The betas whose `alphas_cumprod` is `table`, for a scheduler's `trained_betas`."""
    alphas = table.double()
    return cast(list[float], (1 - torch.cat([alphas[:1], alphas[1:] / alphas[:-1]])).tolist())
