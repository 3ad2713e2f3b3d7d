"""accelerate's variables in the environment: what its launcher or a shell sets must not change a recipe silently.

accelerate reads dozens of variables when an `Accelerator` is made, also without its launcher. The recipe decides about
precision, accumulation and compilation; the environment only about processes, devices and FSDP2
(`distill.training.sharding`). Settings that ask for other training are errors, and the rest is ignored with a message.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from distill.config.sections import TrainRecipe

# Where the processes run and what they log; accelerate may read these.
KEPT = frozenset(
    f"ACCELERATE_{name}"
    for name in ("USE_CPU", "TORCH_DEVICE", "CPU_AFFINITY", "DEBUG_MODE", "LOG_LEVEL", "USE_SAGEMAKER", "ENABLE_RICH")
)
PREFIXES = ("ACCELERATE_", "PARALLELISM_CONFIG_", "MEGATRON_LM_", "FP8_")
TRAINED_ALONE = ("DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")  # they train one network with one optimizer


def is_on(name: str) -> bool:
    """Whether a variable of the environment is set to a word for true, as accelerate reads it."""
    return os.environ.get(name, "").strip().lower() in ("1", "y", "yes", "t", "true", "on")


@contextmanager
def without_accelerate_variables() -> Iterator[None]:
    """A context without the variables that would change how an `Accelerator` trains."""
    removed = {
        name: os.environ.pop(name) for name in list(os.environ) if name.startswith(PREFIXES) and name not in KEPT
    }
    try:
        yield
    finally:
        os.environ.update(removed)


def check_environment(settings: TrainRecipe) -> list[str]:
    """Compare accelerate's variables with the recipe.

    Args:
        settings: The recipe's `train` section.

    Returns:
        A sentence for each variable that differs from the recipe and is ignored.

    Raises:
        ValueError: For settings that ask for another way of training.
    """
    on = [name for name in TRAINED_ALONE if is_on(f"ACCELERATE_USE_{name}")]
    if on:
        raise ValueError(
            f"{' and '.join(on)} cannot train several networks with one optimizer each; "
            "use recipes/accelerate/fsdp2.yaml or ddp.yaml"
        )
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise ValueError(
            "accelerate's dynamo_config compiles the whole method, and forward-mode derivatives cannot be compiled; "
            "remove it from the configuration and set train.compile=blocks in the recipe"
        )
    notes = []
    for name, default, key, value in (
        ("ACCELERATE_MIXED_PRECISION", "no", "train.precision", settings.precision),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1", "train.accumulation", str(settings.accumulation)),
        ("ACCELERATE_GRADIENT_CLIPPING", "none", "train.max_norm", f"{settings.max_norm:g}"),
    ):
        found = os.environ.get(name, default)
        if found.lower() not in (default, value):
            notes.append(f"{name}={found} in the environment is ignored: the recipe says {key}={value}")
    return notes
