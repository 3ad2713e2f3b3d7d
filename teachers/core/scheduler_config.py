"""What the config of a diffusers scheduler says: its own entries, its prediction, and the shift of its timesteps."""

import inspect
import math
import re
from typing import Any


def config_of(scheduler: Any) -> Any:
    """The config of a scheduler; empty for objects without one."""
    return getattr(scheduler, "config", {})


def own_value(scheduler: Any, key: str) -> Any:
    """An entry of a scheduler's config that its class takes; None for others.

    `from_config` keeps the entries of the scheduler that the config is from, and the class ignores them.
    """
    return config_of(scheduler).get(key) if key in inspect.signature(type(scheduler).__init__).parameters else None


def positive(scheduler: Any, key: str) -> float:
    """An entry of a scheduler's config that must be a positive number."""
    value = scheduler.config[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{key} of {type(scheduler).__name__} must be a number above 0, got {value!r}")
    return float(value)


def prediction_type(scheduler: Any) -> str:
    """The prediction type in a scheduler's config; "original_sample" is an older name in EulerDiscreteScheduler."""
    name = str(scheduler.config["prediction_type"])
    return "sample" if name == "original_sample" else name


def clipping(scheduler: Any) -> str | None:
    """The option by which stock sampling limits x0, which training does not do; None if there is none."""
    return next((key for key in ("thresholding", "clip_sample") if own_value(scheduler, key)), None)


def is_shifted(scheduler: Any) -> bool:
    """Whether a scheduler shifts the signal-to-noise ratio of its table, which other schedulers' configs cannot say."""
    return float(config_of(scheduler).get("snr_shift_scale") or 1.0) != 1.0


def flow_shift(scheduler: Any, tokens: int) -> float:
    """The timestep shift of a flow scheduler.

    Args:
        scheduler: The scheduler.
        tokens: Number of tokens of one sample. With dynamic shifting the shift depends on it.

    Returns:
        The factor `shift` of `Flow`.

    Raises:
        ValueError: If it is not positive.
    """
    config = scheduler.config
    if not own_value(scheduler, "use_dynamic_shifting"):
        key = "shift" if own_value(scheduler, "flow_shift") is None else "flow_shift"
        return positive(scheduler, key)
    # Pipelines compute it, from these entries of any scheduler's config and with these defaults.
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu = low + (high - low) / (many - few) * (tokens - few)
    return float(mu) if own_value(scheduler, "time_shift_type") == "linear" else math.exp(mu)


def check_shift(kind: type[Any], scheduler: Any) -> None:
    """Check that a pipeline passes the shift that its scheduler needs.

    Args:
        kind: The class of the pipeline.
        scheduler: Its scheduler.

    Raises:
        ValueError: If dynamic shifting needs a shift that the pipeline's call does not pass as `mu`.
    """
    if not own_value(scheduler, "use_dynamic_shifting"):
        return
    try:
        source = inspect.getsource(kind.__call__)
    except OSError:  # a class without a file
        return
    if not re.search(r"""\bmu\s*=|["']mu["']""", source):
        raise ValueError(
            f"use_dynamic_shifting of the scheduler of {kind.__name__} must be False, got True: its call passes no "
            "shift"
        )
