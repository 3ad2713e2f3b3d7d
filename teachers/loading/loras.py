"""Fine-tunes of a teacher: LoRA files and fine-tuned folders that are fused into its pipeline before distillation.

diffusers loads and fuses LoRA files, in float32 and in their order, so the result is that of `load_lora_weights`,
`fuse_lora` and `save_pretrained`. What diffusers only warns about, such as layers that the network does not have, is an
error here. The fused pipeline is a folder in a cache, so that every command loads it as any other teacher.
"""

import importlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.utils import logging as diffusers_log
from torch import nn

from teachers.loading.contents import Contents, pipeline_contents
from teachers.loading.lora_files import Lora, is_fine_tune, locate_lora, lora_contents, peft_settings, read_lora
from teachers.loading.source import INDEX, TEXT_COMPONENTS, config_source, download, load_pipeline, loading_errors
from teachers.loading.weights import check_finite, load_network, weight_files
from teachers.support.checksums import read_json, write_json
from teachers.support.errors import is_foreign, is_sentence, reason
from teachers.support.files import atomic_write, remove, sha256, tensor_bytes
from teachers.support.json_files import read_json as read_config
from teachers.support.keys import folder_contents, key
from teachers.support.locks import replaced
from teachers.support.private_api import lora_components
from teachers.support.regular import check_special
from teachers.support.text import printable, read_text

ADAPTER = "fine_tune"
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
            write_json(folder / RECORD, {"key": name, "files": folder_contents(folder / PIPELINE)})
    return folder / PIPELINE


def fused_key(contents: Contents, loras: Sequence[Lora]) -> str:
    """A key of a fused pipeline: the teacher, the fine-tunes, and the libraries that fuse them."""
    return key("fused", dict(contents), lora_contents(loras), diffusers.__version__, _peft().__version__)


def _peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise ValueError('teacher.loras needs the package peft: pip install -e ".[lora]"') from error


def _is_complete(folder: Path, name: str) -> bool:
    """Whether a fused pipeline is there as it was written."""
    try:
        record = read_json(folder / RECORD)
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
        _declare_float32(target / name / "config.json")


def _declare_float32(config: Path) -> None:
    """transformers loads a model in the dtype of its config, which may be the one that the base was stored in."""
    values = json.loads(read_text(config))
    if "transformers_version" in values:
        config.write_text(json.dumps(values | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


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


def load_lora(pipeline: Any, file: Path, network: str, values: bool = True) -> set[str]:
    """Load a LoRA file into a pipeline, which may be on the meta device, as stock diffusers does.

    Args:
        pipeline: The pipeline; afterwards it has the adapter `ADAPTER`.
        file: The .safetensors file.
        network: Name of the pipeline's denoising network.
        values: Whether the values in the layers are compared with those of the file; the meta device has shapes only.

    Returns:
        The names of the components that have the adapter.

    Raises:
        ValueError: If the file has a key that no layer takes, or a layer of another shape.
    """
    name = type(pipeline).__name__
    if not isinstance(pipeline, LoraBaseMixin):
        raise ValueError(f"teacher.loras must be empty for a {name}, which diffusers cannot load LoRA files into")
    read_lora(file)
    _peft()
    try:
        with _without_warnings():
            state = _load(pipeline, file, network)
    except BaseException as error:
        if not is_foreign(error) or is_sentence(error):
            raise
        raise ValueError(
            f"the LoRA file {file} does not fit the {name} of the teacher: {' '.join(reason(error).split())[:300]}"
        ) from error
    found = _adapters(pipeline)
    unused = _unused(state, found, values)
    if unused:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        raise ValueError(
            f"the LoRA file {file} does not fit the {name} of the teacher: no layer takes "
            f"{', '.join(printable(key) for key in unused[:3])}{more}; use a LoRA file of this model"
        )
    return {component for component, part in found.items() if part}


def _load(pipeline: Any, file: Path, network: str) -> Mapping[str, torch.Tensor]:
    """Load a file with diffusers' own functions; returns the tensors that must be in layers afterwards."""
    if (settings := peft_settings(file)) is not None:  # what peft's own save_pretrained writes, for the network alone
        tensors = {key.removeprefix("base_model.model."): value for key, value in read_lora(file).items()}
        pipeline.components[network].load_lora_adapter(
            dict(tensors), prefix=None, adapter_name=ADAPTER, metadata=dict(settings), low_cpu_mem_usage=True
        )
        return tensors
    source: dict[str, Any] = {"weight_name": file.name, "local_files_only": True, "use_safetensors": True}
    unet = pipeline.components.get("unet")
    config = {} if unet is None else {"unet_config": unet.config}
    found: Any = type(pipeline).lora_state_dict(str(file.parent), **source, **config)
    with _text_encoder_adapters(pipeline):
        pipeline.load_lora_weights(str(file.parent), adapter_name=ADAPTER, low_cpu_mem_usage=True, **source)
    state: Mapping[str, torch.Tensor] = found[0] if isinstance(found, tuple) else found
    return state


@contextmanager
def _text_encoder_adapters(pipeline: Any) -> Iterator[None]:
    """A context in which peft itself adds adapters to text encoders: transformers refuses most versions of peft."""
    encoders = [pipeline.components.get(name) for name in lora_components(pipeline) if name.startswith("text_encoder")]
    encoders = [encoder for encoder in encoders if encoder is not None]
    for encoder in encoders:
        encoder.load_adapter = partial(_add_adapter, encoder)
    try:
        yield
    finally:
        for encoder in encoders:
            del encoder.load_adapter


def _add_adapter(
    network: Any, adapter_name: str, adapter_state_dict: Mapping[str, torch.Tensor], peft_config: Any, **options: Any
) -> None:
    peft = _peft()
    peft.inject_adapter_in_model(peft_config, network, adapter_name, **options)
    network.peft_config = {adapter_name: peft_config}
    peft.set_peft_model_state_dict(network, dict(adapter_state_dict), adapter_name, **options)


def _adapters(pipeline: Any) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of the adapter in each component that can have one."""
    parts = {name: pipeline.components.get(name) for name in lora_components(pipeline)}
    return {
        name: {key: value.detach() for key, value in part.state_dict().items() if ADAPTER in key.split(".")}
        for name, part in parts.items()
        if isinstance(part, nn.Module)
    }


def _unused(
    state: Mapping[str, torch.Tensor], found: Mapping[str, Mapping[str, torch.Tensor]], values: bool
) -> list[str]:
    """The keys of a file whose tensors are in no layer: neither under their name, nor, for other names, by value."""
    layers = {
        f"{component}.{key.replace(f'.{ADAPTER}', '')}": _fingerprint(value, values)
        for component, part in found.items()
        for key, value in part.items()
    }
    wanted = {key: _fingerprint(value, values) for key, value in state.items()}
    rest = {key: mark for key, mark in wanted.items() if layers.get(key) != mark}
    others = Counter(mark for key, mark in layers.items() if wanted.get(key) != mark)
    return [key for key, mark in rest.items() if not _take(others, mark)]


def _fingerprint(value: torch.Tensor, values: bool) -> tuple[tuple[int, ...], str]:
    return tuple(value.shape), sha256([tensor_bytes(value.detach().float())]) if values else ""


def _take(counts: Counter[Any], item: Any) -> bool:
    counts[item] -= 1
    return counts[item] >= 0


@contextmanager
def _without_warnings() -> Iterator[None]:
    """A context without diffusers' warnings about unused keys, which are errors here."""
    level = diffusers_log.get_verbosity()
    diffusers_log.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_log.set_verbosity(level)


def tuned_networks(pipeline: Any, folder: Path, network: str, device: str | None = None) -> dict[str, nn.Module]:
    """The denoising network of a fine-tuned folder, and the text encoders that it has.

    Args:
        pipeline: The pipeline whose networks they replace.
        folder: A pipeline folder, or the folder of a network.
        network: Name of the pipeline's denoising network.
        device: "meta": only names and shapes are read.

    Returns:
        The networks in float32 by component name.

    Raises:
        ValueError: If a network of the folder is another one than the pipeline's.
    """
    whole = (folder / INDEX).is_file()
    check_special(folder)
    names = [name for name, part in pipeline.components.items() if isinstance(part, nn.Module)]
    names = [name for name in names if name == network or (whole and name.startswith(TEXT_COMPONENTS))]
    found = {name: folder / name if whole else folder for name in names}
    found = {name: at for name, at in found.items() if name == network or weight_files(at)[1]}
    tuned: dict[str, nn.Module] = {}
    for name, at in found.items():
        own = pipeline.components[name]
        config = read_config(at / "config.json", constants=True) if (at / "config.json").is_file() else {}
        stored = config.get("_class_name") or (config.get("architectures") or [None])[0]
        if stored != type(own).__name__:
            raise ValueError(f"{at} must be a {type(own).__name__}, the {name} of the teacher, got {printable(stored)}")
        with loading_errors(str(at)):
            tuned[name] = load_network(type(own), at, torch.float32, device=device)
        shapes, expected = ({k: v.shape for k, v in part.state_dict().items()} for part in (tuned[name], own))
        if shapes != expected:
            other = next(k for k in {**expected, **shapes} if shapes.get(k) != expected.get(k))
            raise ValueError(f"{at} must have the layers of the {name} of the teacher, but {other} differs")
        if device is None:
            check_finite(at, tuned[name])
    return tuned
