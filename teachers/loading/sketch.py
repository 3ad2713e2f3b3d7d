"""A teacher from its configuration alone: networks on the meta device, no weights."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from teachers.core.teacher import Teacher
from teachers.loading.components import OPTIONAL, absent_components, installed_class, is_component, is_setting
from teachers.loading.inspection import check_text_widths
from teachers.loading.load_errors import loading_errors
from teachers.loading.location import config_source
from teachers.loading.markers import apply_markers
from teachers.loading.sizes import bounded, build, check_configs
from teachers.loading.source import TEXT_COMPONENTS, check_trusted, class_name

# Bytes for each parameter of the network while training in float32: 4 for each copy of the weights, 8 for the moments
# of AdamW of each network that trains, and 4 for the gradient of the network that is being updated.
DMD_BYTES = 4 * 4 + 2 * 8 + 4  # teacher, student, fake score, EMA
SCM_BYTES = 3 * 4 + 8 + 4  # teacher, student, EMA


def sketch(path: str, family: type[Teacher], size: Mapping[str, float] | None = None) -> Teacher:
    """Build a teacher with its networks on the meta device.

    Args:
        path: A pipeline folder, a Hub id or a .safetensors file; only configuration files and the file's header are
            read.
        family: The teacher's class.
        size: Size of a sample, as `Teacher.load` takes it.

    Returns:
        The teacher with shapes, schedule and parameters, but without weights.

    Raises:
        ValueError: If a configuration file cannot be read.
    """
    file, path = path, config_source(path)
    with loading_errors(path):
        if Path(path).is_dir():
            check_configs(Path(path))
        index = DiffusionPipeline.load_config(path)
        if "_class_name" not in index:
            raise ValueError(f"{path}/model_index.json has no _class_name; save the pipeline again")
        kinds = {kind.__name__: kind for kind in family.pipelines}
        name = class_name(path)
        kind = kinds.get(str(name))
        if kind is None:
            raise ValueError(f"{path} is a {name}; this family takes {' or '.join(kinds)}")
        owners = (family, *family.pipelines, *family.components)
        check_trusted(path, owners, kind)
        absent_components(kind, index, path)
        check_text_widths(path, family.network, family.text_widths)
        parameters = inspect.signature(kind.__init__).parameters
        parts: dict[str, Any] = {
            name: None for name, p in parameters.items() if name != "self" and p.default is inspect.Parameter.empty
        }
        parts |= {name: index[name] for name in parameters if name in index and is_setting(index[name])}
        skipped = {*OPTIONAL, *(name for name, value in family.options.items() if value is None)}
        for name, value in index.items():
            component = installed_class(value, owners) if name in parameters and name not in skipped else None
            if component is None:
                continue
            if issubclass(component, ConfigMixin):
                with torch.device("meta" if issubclass(component, nn.Module) else "cpu"), bounded(Path(path) / name):
                    parts[name] = component.from_config(component.load_config(path, subfolder=name))
            elif issubclass(component, ProcessorMixin) and not name.startswith(TEXT_COMPONENTS):
                with bounded(Path(path) / name, "files that its processor cannot be read from"):
                    parts[name] = component.from_pretrained(path, subfolder=name, trust_remote_code=False)
            elif issubclass(component, PreTrainedModel) and not name.startswith(TEXT_COMPONENTS):
                with bounded(Path(path) / name):  # such as a vocoder
                    parts[name] = build(component, path, name)
    if file != path:
        parts["scheduler"] = apply_markers(parts["scheduler"], file)
    return family.wrap(kind(**parts), **family.size_argument(size))


def add_text_encoders(teacher: Teacher, source: str) -> None:
    """Add tokenizers, and text encoders on the meta device, which define the shapes of conditions.

    Args:
        teacher: A teacher from `sketch`.
        source: The pipeline's folder or Hub id.
    """
    parts: dict[str, Any] = {}
    for name, value in DiffusionPipeline.load_config(source).items():
        if is_component(value) and value[0] == "transformers" and name.startswith(TEXT_COMPONENTS):
            kind: Any = installed_class(value)
            if name.startswith("tokenizer"):
                with bounded(Path(source) / name, "files that its tokenizer cannot be read from"):
                    parts[name] = kind.from_pretrained(source, subfolder=name, trust_remote_code=False)
                continue
            if not issubclass(kind, nn.Module):  # a processor of images, on which no shapes depend
                continue
            with bounded(Path(source) / name):
                parts[name] = build(kind, source, name).requires_grad_(False).eval()
            parts[name].register_forward_pre_hook(_with_whole_mask, with_kwargs=True)
    if parts:
        stock: Any = teacher.stock  # type: ignore[attr-defined]  # every family with text encoders has one
        stock.register_modules(**parts)
        if hasattr(stock, "tokenizer_max_length"):  # the constructor of some pipelines reads it from the tokenizer
            stock.tokenizer_max_length = type(stock)(**stock.components).tokenizer_max_length


def _with_whole_mask(module: nn.Module, args: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Give an encoder a mask (B, 1, L, L): whether it needs one (B, L) depends on values, which meta tensors lack."""
    mask = keywords.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.is_meta and mask.ndim == 2:
        whole = mask.new_zeros(len(mask), 1, mask.shape[1], mask.shape[1], dtype=torch.float32)
        keywords = {**keywords, "attention_mask": whole}
    return args, keywords
