"""A teacher from its configuration alone: networks on the meta device, no weights."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline
from torch import nn

from teachers.core.teacher import Teacher
from teachers.loading.components import absent_components, check_components, installed_class
from teachers.loading.inspection import OPTIONAL, check_text_widths
from teachers.loading.markers import apply_markers
from teachers.loading.source import config_source, loading_errors

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
        index = DiffusionPipeline.load_config(path)
        kinds = {kind.__name__: kind for kind in family.pipelines}
        kind = kinds.get(index["_class_name"])
        if kind is None:
            raise ValueError(f"{path} is a {index['_class_name']}; this family takes {' or '.join(kinds)}")
        owners = (family, *family.pipelines, *family.components)
        check_components(index, owners, path)
        absent_components(kind, index, path)
        check_text_widths(path, family.network, family.text_widths)
        parameters = inspect.signature(kind.__init__).parameters
        parts: dict[str, Any] = {
            name: None for name, p in parameters.items() if name != "self" and p.default is inspect.Parameter.empty
        }
        parts |= {name: index[name] for name in parameters if name in index and not isinstance(index[name], list)}
        for name, value in index.items():
            component = installed_class(value, owners) if name in parameters and name not in OPTIONAL else None
            if component is not None and issubclass(component, ConfigMixin):
                with torch.device("meta" if issubclass(component, nn.Module) else "cpu"):
                    parts[name] = component.from_config(component.load_config(path, subfolder=name))
    if file != path:
        parts["scheduler"] = apply_markers(parts["scheduler"], file)
    return family.wrap(kind(**parts), family.sigma_data, **family.size_argument(size))
