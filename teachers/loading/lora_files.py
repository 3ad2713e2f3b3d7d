"""Finding and reading the files of fine-tunes. Only safetensors are read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from teachers.loading.contents import pipeline_contents
from teachers.loading.location import INDEX
from teachers.support.json_files import read_json
from teachers.support.keys import file_content, folder_contents, key
from teachers.support.listing import visible
from teachers.support.options import Checked, option
from teachers.support.regular import check_regular
from teachers.support.text import printable

USUAL = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
SETTINGS = "adapter_config.json"  # beside adapter_model.safetensors, which peft writes
CONFIG = "config.json"
# Parts of keys of adapters that diffusers leaves out of what it loads, or does not support.
OTHER_KINDS = {"dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "hada_w1_a": "LoHa", "oft_blocks": "OFT"}
SETTING_KEYS = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "lora_bias", "use_rslora")


@dataclass
class Lora(Checked):
    """An entry of `teacher.loras` in a recipe: a fine-tune of the teacher that is fused into it."""

    path: str = option(
        help="A LoRA file (.safetensors), a folder with one, a fine-tuned pipeline or network folder, or a Hub id."
    )
    scale: float = option(1.0, "The scale that the LoRA is fused at.", at_least=-100, at_most=100)

    TEXT: ClassVar[str] = "path"  # a recipe may give the path alone


def locate_lora(path: str) -> Path:
    """The file of a LoRA, or the folder of a fine-tune.

    Args:
        path: A .safetensors file, a folder, or a Hub id (owner/name, or owner/name/file.safetensors).

    Raises:
        ValueError: If there is no such file or folder, or several could be meant.
    """
    local = Path(path)
    if local.is_dir():
        return _in_folder(local)
    if local.exists():
        check_regular(local)
        if local.suffix != ".safetensors":
            raise ValueError(f"teacher.loras must name .safetensors files, got {path}; convert it to safetensors")
        return local
    parts = path.split("/")
    is_hub = len(parts) >= 2 and all(parts) and path[0] not in "./~" and not local.parent.exists()
    if not is_hub or (len(parts) > 2 and not path.endswith(".safetensors")):
        raise ValueError(f"teacher.loras must name LoRA files, folders or Hub ids; there is no {path}")
    name = "/".join(parts[2:]) or USUAL[0]
    try:
        return Path(hf_hub_download("/".join(parts[:2]), name))
    except Exception as error:  # the Hub's client raises exceptions of many libraries
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"the LoRA {path} is not on this machine and {name} cannot be downloaded from the Hub: {first}"
        ) from error


def _in_folder(folder: Path) -> Path:
    if (folder / INDEX).is_file() or (folder / CONFIG).is_file():
        return folder
    usual = [folder / name for name in USUAL if (folder / name).is_file()]
    files = usual or visible(folder, "*.safetensors")
    if not files:
        raise ValueError(
            f"{folder} must have a LoRA file (.safetensors), or be a fine-tuned pipeline or network that "
            "save_pretrained wrote"
        )
    if len(files) > 1:
        raise ValueError(
            f"{folder} has several LoRA files ({', '.join(printable(file.name) for file in files[:3])}); name one of "
            "them in teacher.loras"
        )
    check_regular(files[0])
    return files[0]


def lora_contents(loras: Sequence[Lora]) -> dict[str, str]:
    """The hash and the scale of every fine-tune by name, for keys of what is computed with the fused teacher.

    Raises:
        ValueError: If there is no such file or folder, or it is not a LoRA file.
    """
    return {f"LoRA {n}": f"{lora_hash(lora)} at {lora.scale!r}" for n, lora in enumerate(loras, start=1)}


def lora_hash(lora: Lora) -> str:
    """The SHA-256 of a LoRA file, or a hash of the weights of a fine-tuned folder."""
    source = locate_lora(lora.path)
    if not source.is_dir():
        settings = peft_settings(source)
        return file_content(source) if settings is None else key(file_content(source), settings)
    return key(pipeline_contents(str(source)) if (source / INDEX).is_file() else folder_contents(source))


def lora_record(lora: Lora) -> dict[str, Any]:
    """An entry of a pipeline's `distill.json` about a fine-tune of its teacher; see `recorded_loras`."""
    return {"path": lora.path, "scale": lora.scale, "sha256": lora_hash(lora)}


def recorded_loras(entries: Any, where: object) -> list[Lora]:
    """The fine-tunes of a `distill.json`.

    Args:
        entries: Its entry teacher.loras; None for a teacher without fine-tunes.
        where: The file, for error messages.

    Raises:
        ValueError: If the entry is invalid.
    """
    try:
        return [Lora(entry["path"], entry["scale"]) for entry in entries or ()]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{where} must list a path and a scale in each of teacher.loras; export it again") from error


def is_fine_tune(source: Path) -> bool:
    """Whether the result of `locate_lora` is a fine-tuned pipeline or network, not a LoRA file."""
    return source.is_dir()


def read_lora(file: Path) -> Mapping[str, Tensor]:
    """The tensors of a LoRA file.

    Raises:
        ValueError: If it is damaged, holds no LoRA, an unsupported kind of adapter, or values that are not finite.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"the LoRA file {file} is corrupt or incomplete ({error}); get the file again") from error
    for part, kind in OTHER_KINDS.items():
        if any(part in name for name in tensors):
            raise ValueError(f"{file} must be a LoRA, got a {kind}, which diffusers cannot fuse; extract a LoRA of it")
    if not any("lora" in name.lower() or "lokr_" in name for name in tensors):
        first = printable(next(iter(tensors), "no tensor"))[:80]
        raise ValueError(
            f"{file} must be a LoRA file, got tensors such as {first}; give a whole model as teacher.path instead"
        )
    for name, value in tensors.items():
        if not bool(value.float().isfinite().all()):
            raise ValueError(f"{file} must have finite values, got NaN or infinite ones in {printable(name)}")
    return tensors


def peft_settings(file: Path) -> dict[str, Any] | None:
    """The settings beside a file that peft's `save_pretrained` wrote; None for files of other formats.

    Raises:
        ValueError: If they are no JSON object.
    """
    settings = file.with_name(SETTINGS)
    if file.name != USUAL[1] or not settings.is_file():
        return None
    values = read_json(settings, constants=True)
    if not isinstance(values, dict):
        raise ValueError(f"{settings} must be a JSON object, got {type(values).__name__}")
    return {name: values[name] for name in SETTING_KEYS if values.get(name) is not None}
