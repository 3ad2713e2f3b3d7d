"""A teacher from its configuration alone: networks on the meta device, no weights read."""

import inspect
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin

from teachers.core.teacher import Teacher
from teachers.loading.source import explained

# Bytes that training holds for every parameter of the network, in float32: 4 for each copy's weights, 8 for AdamW's
# moments of each network that trains, and 4 for the gradient of the network that is being updated.
DMD_BYTES = 4 * 4 + 2 * 8 + 4  # teacher, student, fake score, EMA
SCM_BYTES = 3 * 4 + 8 + 4  # teacher, student, EMA


def sketch(path: str, family: type[Teacher]) -> Teacher:
    """The teacher at `path` with networks on the meta device: shapes, schedule and parameters, but no weights."""
    with explained(path):
        index = DiffusionPipeline.load_config(path)
        kind = getattr(diffusers, index["_class_name"])
        wanted = inspect.signature(kind.__init__).parameters
        parts: dict[str, Any] = {
            name: None for name, p in wanted.items() if name != "self" and p.default is inspect.Parameter.empty
        }
        parts |= {name: index[name] for name in wanted if name in index and not isinstance(index[name], list)}
        for name, value in index.items():
            if not isinstance(value, list) or value[0] != "diffusers" or name not in wanted:
                continue
            component = getattr(diffusers, value[1])
            if issubclass(component, ModelMixin | SchedulerMixin):
                with torch.device("meta" if issubclass(component, ModelMixin) else "cpu"):
                    parts[name] = component.from_config(component.load_config(path, subfolder=name))
        return family.wrap(kind(**parts))
