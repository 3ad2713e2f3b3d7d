"""Description of a teacher and of the memory that training takes, from its configuration; no weights are read.

fewstep describe PATH
"""

import math
from pathlib import Path

from diffusers import DiffusionPipeline
from safetensors import safe_open
from torch import nn

from teachers.core.teacher import Teacher
from teachers.core.trigflow import VariancePreserving
from teachers.loading.inspection import check_component_weights, check_folder
from teachers.loading.registry import family_of, installed, locate
from teachers.loading.sketch import DMD_BYTES, SCM_BYTES, sketch
from teachers.loading.source import check_weights, configuration


def stored_parameters(folder: Path) -> dict[str, int]:
    """Count the parameters of a local pipeline's components, without its network, from safetensors headers.

    Args:
        folder: The pipeline's folder.

    Returns:
        The number of parameters by component.
    """
    counts: dict[str, int] = {}
    for file in sorted(folder.glob("*/*.safetensors")):
        variant = len(file.suffixes) > 1  # model.fp16.safetensors is a second copy
        if not variant and file.parent.name not in ("unet", "transformer"):
            with safe_open(file, framework="pt") as tensors:
                size = sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
            counts[file.parent.name] = counts.get(file.parent.name, 0) + size
    return counts


def describe(path: str) -> str:
    """Describe a teacher.

    Args:
        path: A pipeline folder, a Hub id, a .safetensors file or "pocket".

    Returns:
        Several lines of text.

    Raises:
        ValueError: If no installed family takes the pipeline, or its configuration cannot be read.
    """
    path = locate(path)
    name = family_of(path)
    source = str(configuration(path)) if Path(path).is_file() else path
    check_weights(path)
    check_folder(source)
    check_component_weights(path)
    teacher = sketch(source, installed()[name])
    denoiser, schedule = teacher.denoiser, teacher.denoiser.path
    trained = parameters(denoiser.network)
    stored = stored_parameters(Path(source)) if Path(source).is_dir() else {}
    kind = "variance preserving" if isinstance(schedule, VariancePreserving) else "rectified flow"
    channels, height, width = teacher.shape
    lines = {
        "family": f"{name} ({DiffusionPipeline.load_config(source)['_class_name']})",
        "network": f"{type(denoiser.network).__name__}, {count(trained)} parameters",
        "components": ", ".join(f"{part} {count(size)}" for part, size in stored.items()) or "unknown",
        "schedule": f"{kind}, {schedule.num_train_timesteps} timesteps",
        "predicts": denoiser.prediction,
        "angles": f"{schedule.t_min:.4f} to t_max = {schedule.t_max:.4f} rad",
        "image": f"{teacher.image_size[0]} x {teacher.image_size[1]}, from {channels} x {height} x {width}",
        "guidance": guidance(teacher),
        "DMD": f"{memory(trained, DMD_BYTES)}: teacher, student, fake score, EMA",
        "sCM": f"{memory(trained, SCM_BYTES)}: teacher, student, EMA",
        "": "(float32 with AdamW, one process; without activations, autoencoder and text encoders)",
    }
    return "\n".join([path, *(f"  {key:<10} {value}" for key, value in lines.items())])


def guidance(teacher: Teacher) -> str:
    """How guidance applies to the teacher's students, as one phrase."""
    if not teacher.guided:
        return "none: it takes no prompts"
    if teacher.ignores_guidance:
        return "trained into the weights; exported pipelines ignore guidance_scale"
    return "trained into the weights; call exported pipelines with guidance_scale=1.0"


def memory(size: int, bytes_each: int) -> str:
    """The memory of `size` parameters at `bytes_each` bytes, in GiB or MiB."""
    total = size * bytes_each
    return f"{total / 2**30:.1f} GiB" if total >= 2**30 else f"{total / 2**20:.1f} MiB"


def parameters(module: nn.Module) -> int:
    """The number of parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def count(size: int) -> str:
    """A number of parameters with a unit: billions (B) or millions (M)."""
    return f"{size / 1e9:.2f} B" if size >= 1e9 else f"{size / 1e6:.1f} M" if size >= 1e5 else f"{size:,}"
