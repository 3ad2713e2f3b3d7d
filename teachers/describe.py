"""Description of a teacher and of the memory that training takes, from its configuration and its stored weights.

fewstep describe PATH
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusers import DiffusionPipeline
from safetensors import safe_open
from torch import nn

from teachers.core.cosine_path import Cosine
from teachers.core.edm_path import Edm
from teachers.core.scheduler_config import clipping
from teachers.core.teacher import Teacher
from teachers.core.trigflow import Flow, VariancePreserving
from teachers.loading.distilled import distilled
from teachers.loading.embedded import locate, usual_size
from teachers.loading.load_errors import loading_errors
from teachers.loading.location import config_source
from teachers.loading.lora_files import Lora
from teachers.loading.loras import check_fit_of
from teachers.loading.registry import family_of, installed
from teachers.loading.sketch import DMD_BYTES, SCM_BYTES
from teachers.loading.trial import check_teacher
from teachers.loading.weights import check_networks, weight_files
from teachers.media import Audio, Medium, Video
from teachers.support.errors import reads
from teachers.support.listing import visible
from teachers.support.text import printable


def stored_parameters(folder: Path, network: str) -> dict[str, int]:
    """Count the parameters of a local pipeline's components, without its network, from safetensors headers.

    Args:
        folder: The pipeline's folder.
        network: The name of its network.

    Returns:
        The number of parameters by component.
    """
    counts: dict[str, int] = {}
    for part in [item for item in visible(folder, "*") if item.name != network]:
        for file in weight_files(part)[1]:
            with safe_open(file, framework="pt") as tensors:
                size = sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
            counts[part.name] = counts.get(part.name, 0) + size
    return counts


def has_other_models(source: str, network: str) -> bool:
    """Whether a pipeline has components with weights other than its network, as far as its files show it.

    Args:
        source: The pipeline's folder, or a Hub id.
        network: The name of its network.
    """
    others = [part for part in visible(Path(source), "*") if part.name != network]
    return not Path(source).is_dir() or any((part / "config.json").is_file() for part in others)


@reads
def describe(path: str, size: Mapping[str, float] | None = None, loras: Sequence[Lora] = ()) -> str:
    """Describe a teacher.

    Args:
        path: A pipeline folder, a Hub id, a .safetensors file, or an embedded teacher such as "pocket".
        size: Size of a clip or sound, as `teacher.size` of a recipe; None: the default of the pipeline's call.
        loras: Fine-tunes of the teacher, as `teacher.loras` of a recipe; they must fit.

    Returns:
        Several lines of text.

    Raises:
        ValueError: If no installed family takes the pipeline, its configuration cannot be read, or its weights on this
            machine have other names or shapes than its networks, or values that are not finite.
    """
    size, path = size or usual_size(path), locate(path)
    name = family_of(path)
    source, family = config_source(path), installed()[name]
    teacher = check_teacher(path, family, size)
    if loras:
        check_fit_of(family, path, loras)
    denoiser, schedule = teacher.denoiser, teacher.denoiser.path
    trained = parameters(denoiser.network)
    stored: dict[str, int] = {}
    variants: list[str] = []
    unknown = "unknown" if has_other_models(source, family.network) else ""
    if Path(source).is_dir():
        with loading_errors(path):
            variants = check_networks(Path(source), (family, *family.pipelines, *family.components))
            stored = stored_parameters(Path(source), family.network)
    clips = clipping(getattr(getattr(teacher, "stock", teacher), "scheduler", None))
    kinds = {VariancePreserving: "variance preserving", Flow: "rectified flow", Cosine: "cosine", Edm: "EDM"}
    kind = next((text for path, text in kinds.items() if isinstance(schedule, path)), type(schedule).__name__)
    latent = " x ".join(map(str, teacher.shape))
    lines = {
        "family": f"{name} ({DiffusionPipeline.load_config(source)['_class_name']})",
        "network": f"{type(denoiser.network).__name__}, {count(trained)} parameters",
        "components": ", ".join(f"{part} {count(size)}" for part, size in stored.items()) or unknown,
        "variants": ", ".join(variants),
        "fine-tunes": ", ".join(f"{lora.path} at {lora.scale:g}" for lora in loras),
        "schedule": f"{kind}, {schedule.num_train_timesteps} timesteps",
        "predicts": denoiser.prediction,
        "angles": f"{schedule.t_min:.4f} to t_max = {schedule.t_max:.4f} rad",
        teacher.medium.name: f"{sample_size(teacher.medium)}, from {latent}",
        "clipping": f"stock sampling limits x0 ({clips}); training and students do not" if clips else "",
        "distilled": f"{few}; a teacher should be a model of many steps" if (few := distilled(path)) else "",
        "guidance": guidance(teacher),
        "DMD": f"{memory(trained, DMD_BYTES)}: teacher, student, fake score, EMA",
        "sCM": f"{memory(trained, SCM_BYTES)}: teacher, student, EMA",
        "": "(float32 with AdamW, one process; without activations, autoencoder and text encoders)",
    }
    return "\n".join([printable(path), *(f"  {key:<10} {printable(value)}" for key, value in lines.items() if value)])


def sample_size(medium: Medium) -> str:
    """The size of a decoded sample in words."""
    if isinstance(medium, Video):
        return f"{medium.frames} frames of {medium.height} x {medium.width}, {medium.rate:g} a second"
    if isinstance(medium, Audio):
        channels = "1 channel" if medium.channels == 1 else f"{medium.channels} channels"
        return f"{medium.seconds:.2f} s at {medium.rate:g} Hz, {channels}"
    return " x ".join(map(str, medium.shape[1:]))


def guidance(teacher: Teacher) -> str:
    """How guidance applies to the teacher's students, as one phrase."""
    if not teacher.guided:
        return "none: it has no condition without a class" if teacher.prompted else "none: it takes no prompts"
    scale = teacher.call_names.get("guidance_scale", "guidance_scale")
    value = teacher.calls(1).get(scale, 1.0)
    if teacher.embeds_guidance and not teacher.ignores_guidance:
        return f"an input of the network, evaluated once; call exported pipelines with {scale}={value}"
    if teacher.embeds_guidance:
        return "an input of the network, evaluated once; trained into the weights, exported pipelines ignore it"
    if teacher.ignores_guidance:
        return "trained into the weights; exported pipelines ignore guidance_scale"
    return f"trained into the weights; call exported pipelines with {scale}={value}"


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
