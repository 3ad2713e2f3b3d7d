"""Marker tensors of single files, by which training tools and user interfaces state a schedule.

A file of Stable Diffusion with a tensor `v_pred` has a network that predicts v, and one with `ztsnr` was trained with
zero terminal SNR. The configuration next to the file is usually that of the original model and does not say so.
"""

import inspect
import logging
from typing import Any

from safetensors import safe_open

from teachers.core.schedule import alphas_cumprod

logger = logging.getLogger(__name__)
MARKERS = {"v_pred": ("prediction_type", "v_prediction"), "ztsnr": ("rescale_betas_zero_snr", True)}
EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
ZERO_SNR = 1e-7  # some schedulers have 2^-24 as the last alphas_cumprod instead of 0


def apply_markers(scheduler: Any, file: str) -> Any:
    """The scheduler of a single file, as its marker tensors state it.

    Args:
        scheduler: The scheduler of the configuration.
        file: The .safetensors file; only its header is read.

    Returns:
        `scheduler` itself if the file does not contradict it, otherwise a changed copy.

    Raises:
        ValueError: If the scheduler's class does not support what the markers state.
    """
    with safe_open(file, framework="pt") as tensors:
        names = set(tensors.keys())
    if unsupported := sorted(names.intersection(EDM)):
        raise ValueError(f"{file} has an EDM schedule (tensor {unsupported[0]}), which is not supported")
    table = alphas_cumprod(scheduler)
    changes = {}
    for marker in sorted(names.intersection(MARKERS)):
        key, value = MARKERS[marker]
        own = key in inspect.signature(type(scheduler).__init__).parameters  # not of a former scheduler's config
        if marker == "ztsnr" and table is not None and table[-1] < ZERO_SNR:
            continue
        if own and scheduler.config.get(key) == value:
            continue
        if not own:
            raise ValueError(
                f"{file} has the marker {marker}, so the scheduler of its configuration must have {key}={value}, which "
                f"{type(scheduler).__name__} does not support; use DDIMScheduler"
            )
        changes[key] = value
    if not changes:
        return scheduler
    stated = ", ".join(f"{key}={value}" for key, value in changes.items())
    logger.warning("the markers in %s override the scheduler of its configuration: %s", file, stated)
    return type(scheduler).from_config({**scheduler.config, **changes})
