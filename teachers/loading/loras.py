"""Fine-tunes of a teacher: LoRA files and fine-tuned folders that are fused into its pipeline before distillation.

diffusers loads and fuses LoRA files, in float32 and in their order, so the result is that of `load_lora_weights`,
`fuse_lora` and `save_pretrained`. What diffusers only warns about, such as layers that the network does not have, is an
error here. The fused pipeline is a folder in a cache, so that every command loads it as any other teacher.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline

from teachers.loading.contents import Contents, pipeline_contents
from teachers.loading.location import config_source
from teachers.loading.lora_files import Lora, is_fine_tune, locate_lora, lora_contents
from teachers.loading.lora_loading import import_peft, load_lora, tuned_networks
from teachers.loading.saving import declare_float32
from teachers.loading.source import download, load_pipeline
from teachers.support.checksums import read_sealed_json, write_sealed_json
from teachers.support.files import atomic_write, remove
from teachers.support.keys import folder_contents, key
from teachers.support.locks import replaced
from teachers.support.text import printable

FUSED = "fused"  # in the folder of caches: the fused pipelines
PIPELINE, RECORD = "pipeline", "fused.json"  # in the folder of a fused teacher


def fused_folder(kind: type[Any], path: str, loras: Sequence[Lora], cache: Path) -> Path:
    """The folder of a teacher's pipeline with fine-tunes fused into it. It is made once.

    Args:
        kind: The teacher's family.
        path: The teacher's pipeline, as `Teacher.locate` returns it.
        loras: The fine-tunes, in the order in which they are fused.
        cache: The folder of all fused pipelines.

    Returns:
        A pipeline folder whose changed networks are stored in float32.

    Raises:
        ValueError: If a fine-tune does not fit the pipeline.
    """
    name = fused_key(pipeline_contents(path, whole=True), loras)
    folder = cache / name[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with replaced(folder):
        if not _is_complete(folder, name):
            remove(folder / RECORD)
            with atomic_write(folder / PIPELINE) as temporary:
                _write_fused(kind, path, loras, temporary)
            write_sealed_json(folder / RECORD, {"key": name, "files": folder_contents(folder / PIPELINE)})
    return folder / PIPELINE


def fused_key(contents: Contents, loras: Sequence[Lora]) -> str:
    """A key of a fused pipeline: the teacher, the fine-tunes, and the libraries that fuse them."""
    return key("fused", dict(contents), lora_contents(loras), diffusers.__version__, import_peft().__version__)


def _is_complete(folder: Path, name: str) -> bool:
    """Whether a fused pipeline is there as it was written."""
    try:
        record = read_sealed_json(folder / RECORD)
    except (OSError, ValueError):
        return False
    return record.get("key") == name and record.get("files") == folder_contents(folder / PIPELINE)


def _write_fused(kind: type[Any], path: str, loras: Sequence[Lora], target: Path) -> None:
    """Fuse the fine-tunes and write the pipeline; components that they do not change are copied."""
    print(f"fusing {', '.join(printable(lora.path) for lora in loras)} into {printable(path)}", flush=True)
    owners = (kind, *kind.components)
    pipeline = load_pipeline(kind.pipelines, path, (), owners, **(kind.options | {"dtype": torch.float32}))
    changed: set[str] = set()
    for lora in loras:
        changed |= fuse(pipeline, lora, kind.network)
    source = Path(path)
    if source.is_file():
        pipeline.save_pretrained(target, safe_serialization=True)
    else:
        folder = source if source.is_dir() else download(DiffusionPipeline, path)
        shutil.copytree(folder, target, ignore=lambda at, names: changed if Path(at) == folder else set())
        for name in changed:
            pipeline.components[name].save_pretrained(target / name, safe_serialization=True)
    for name in changed:
        declare_float32(target / name / "config.json")  # it may have the dtype that the base was stored in


def fuse(pipeline: Any, lora: Lora, network: str) -> set[str]:
    """Fuse one fine-tune into a pipeline in memory.

    Args:
        pipeline: The pipeline, changed in place.
        lora: The fine-tune.
        network: Name of the pipeline's denoising network.

    Returns:
        The names of the components that changed.

    Raises:
        ValueError: If it does not fit the pipeline.
    """
    source = locate_lora(lora.path)
    if is_fine_tune(source):
        _check_scale(lora)
        tuned = tuned_networks(pipeline, source, network)
        pipeline.register_modules(**tuned)
        return set(tuned)
    changed = load_lora(pipeline, source, network)
    pipeline.fuse_lora(components=sorted(changed), lora_scale=lora.scale)
    pipeline.unload_lora_weights()
    return changed


def check_loras(pipeline: Any, loras: Sequence[Lora], network: str) -> None:
    """Check that fine-tunes fit a pipeline whose networks are on the meta device; nothing is fused.

    Args:
        pipeline: The pipeline; it is unchanged afterwards.
        loras: The fine-tunes.
        network: Name of the pipeline's denoising network.

    Raises:
        ValueError: If one does not fit.
    """
    for lora in loras:
        source = locate_lora(lora.path)
        if is_fine_tune(source):
            _check_scale(lora)
            tuned_networks(pipeline, source, network, device="meta")
        else:
            load_lora(pipeline, source, network, values=False)
            pipeline.unload_lora_weights()


def check_fit_of(kind: type[Any], path: str, loras: Sequence[Lora]) -> None:
    """`check_loras` for the pipeline at `path` of the family `kind`; only configurations of the pipeline are read."""
    from teachers.loading.sketch import add_text_encoders, sketch  # they import the interface of teachers

    teacher: Any = sketch(path, kind)
    add_text_encoders(teacher, config_source(path))
    check_loras(teacher.stock, loras, kind.network)


def _check_scale(lora: Lora) -> None:
    if lora.scale != 1:
        raise ValueError(
            f"the scale of {lora.path} in teacher.loras must be 1, because it is a fine-tuned folder and not a LoRA "
            f"file, got {lora.scale:g}"
        )
