"""What a teacher is and what distilling it takes, from its configuration alone: no weights are read.

python -m teachers describe PATH
"""

import math
from pathlib import Path

from diffusers import DiffusionPipeline
from safetensors import safe_open
from torch import nn

from teachers.core.teacher import Teacher
from teachers.core.trigflow import VariancePreserving
from teachers.loading.registry import family_of, installed, locate
from teachers.loading.sketch import DMD_BYTES, SCM_BYTES, sketch
from teachers.loading.source import configuration


def stored_parameters(folder: Path) -> dict[str, int]:
    """Parameters of each component of a local pipeline but its network, read from the headers of its safetensors."""
    counts: dict[str, int] = {}
    for file in sorted(folder.glob("*/*.safetensors")):
        second = len(file.suffixes) > 1  # model.fp16.safetensors is another copy
        if not second and file.parent.name not in ("unet", "transformer"):
            with safe_open(file, framework="pt") as tensors:
                size = sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
            counts[file.parent.name] = counts.get(file.parent.name, 0) + size
    return counts


def describe(path: str) -> str:
    """The lines that `python -m teachers describe` prints. ValueError, one sentence, where `path` is no teacher."""
    path = locate(path)
    name = family_of(path)
    source = str(configuration(path)) if Path(path).is_file() else path
    teacher = sketch(source, installed()[name])
    denoiser, schedule = teacher.denoiser, teacher.denoiser.path
    trained = parameters(denoiser.network)
    stored = stored_parameters(Path(source)) if Path(source).is_dir() else {}
    kind = "variance preserving" if isinstance(schedule, VariancePreserving) else "rectified flow"
    channels, height, width = teacher.shape
    lines = {
        "family": f"{name} ({DiffusionPipeline.load_config(source)['_class_name']})",
        "network": f"{type(denoiser.network).__name__}, {count(trained)} parameters",
        "beside it": ", ".join(f"{part} {count(size)}" for part, size in stored.items()) or "unknown",
        "schedule": f"{kind}, {schedule.num_train_timesteps} timesteps",
        "predicts": denoiser.prediction,
        "angles": f"{schedule.t_min:.4f} to t_max = {schedule.t_max:.4f} rad",
        "picture": f"{teacher.image_size[0]} x {teacher.image_size[1]}, from {channels} x {height} x {width}",
        "guidance": guidance(teacher),
        "DMD": f"{memory(trained, DMD_BYTES)}: teacher, student, fake score, running average",
        "sCM": f"{memory(trained, SCM_BYTES)}: teacher, student, running average",
        "": "(float32 with AdamW, one process; activations, autoencoder and text encoders come on top)",
    }
    return "\n".join([path, *(f"  {key:<10} {value}" for key, value in lines.items())])


def guidance(teacher: Teacher) -> str:
    if not teacher.guided:
        return "none: it draws without prompts"
    if teacher.ignores_guidance:
        return "goes into the weights; the export leaves it off by itself"
    return "goes into the weights; the export has to be called with guidance_scale=1.0"


def memory(size: int, bytes_each: int) -> str:
    total = size * bytes_each
    return f"{total / 2**30:.1f} GiB" if total >= 2**30 else f"{total / 2**20:.1f} MiB"


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def count(size: int) -> str:
    return f"{size / 1e9:.2f} B" if size >= 1e9 else f"{size / 1e6:.1f} M" if size >= 1e5 else f"{size:,}"
