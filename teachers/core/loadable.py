"""`Loadable`: how a teacher family finds and loads its pipelines, and the contents of a teacher for keys of results."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import nn

from teachers.core.contract import Contract
from teachers.core.schedule import data_scale
from teachers.core.scheduler_config import check_shift
from teachers.loading.contents import pipeline_contents, without_runtime
from teachers.loading.embedded import locate
from teachers.loading.inspection import check_text_widths
from teachers.loading.location import config_source
from teachers.loading.source import TEXT_COMPONENTS, load_pipeline
from teachers.media.record import MOST
from teachers.networks.quantized import Quantization, quantize
from teachers.support.keys import key

LARGEST = 2**20  # of values of `teacher.size` that other families than those of this project have


class Loadable(Contract):
    """The part of `Teacher` that loads it and hashes its contents; `Teacher` describes the attributes."""

    origin: tuple[str, torch.dtype] | None = None

    @classmethod
    def load(
        cls,
        path: str,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        sigma_data: float | None = None,
        size: Mapping[str, float] | None = None,
    ) -> Self:
        """Load a teacher. Text encoders are loaded later, by the first call of `condition`.

        Args:
            path: A pipeline folder, a Hub id, a .safetensors file, or a name that the family knows.
            device: Where the networks go.
            dtype: Precision of the frozen weights.
            sigma_data: Standard deviation of the native latents or pixels; None: that of an EDM
                scheduler, else the family's.
            size: Size of a sample by keys of `size_keys`; None: the pipeline's default.

        Returns:
            The teacher.

        Raises:
            ValueError: If there is no such pipeline, this family does not take it, or it cannot have that size.
        """
        return cls.load_quantized("none", path, device, dtype, sigma_data, size)

    @classmethod
    def load_quantized(
        cls,
        form: Quantization,
        path: str,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        sigma_data: float | None = None,
        size: Mapping[str, float] | None = None,
    ) -> Self:
        """Load a teacher whose denoising network is quantized (`teachers.networks.quantized`).

        The network is quantized in host memory, so its whole weights never are on `device`. Families with their own
        `load` do not use this method.

        Args:
            form: Form of the linear layers; "none" leaves them as they are.
            path, device, dtype, sigma_data, size: As in `load`.

        Returns:
            The teacher.

        Raises:
            ValueError: As `load`, or if nf4 is requested and bitsandbytes is not installed.
        """
        if not cls.pipelines:
            raise ValueError(
                f"{cls.__name__}.pipelines must name a pipeline class, got (); build the teacher in Python"
            )
        source = cls.locate(path)
        check_text_widths(config_source(source), cls.network, cls.text_widths)
        from teachers.loading.trial import check_teacher_once  # it needs `Teacher`

        family: Any = cls
        check_teacher_once(source, family, size)
        owners = (cls, *cls.components)
        stock = load_pipeline(cls.pipelines, source, TEXT_COMPONENTS, owners, dtype=dtype, **cls.options)
        for name, part in stock.components.items():  # before the device has the weights; Wan 2.2 has two networks
            if name.removesuffix("_2") == cls.network and isinstance(part, nn.Module):
                quantize(part, form)
        teacher = cls.wrap(stock.to(device), sigma_data, **cls.size_argument(size))
        teacher.origin = (source, dtype)
        return teacher

    @classmethod
    def wrap(cls, pipeline: Any, sigma_data: float | None = None, size: Mapping[str, float] | None = None) -> Self:
        """Build a teacher from a diffusers pipeline in memory; the pipeline's networks are frozen in place.

        Args:
            pipeline: A pipeline of one of the classes in `pipelines`.
            sigma_data: Standard deviation of the native latents or pixels; None: that of an EDM
                scheduler, else the family's.
            size: Size of a sample by keys of `size_keys`; None: the pipeline's default.

        Returns:
            The teacher.

        Raises:
            ValueError: If a setting of its scheduler cannot be used.
        """
        check_shift(type(pipeline), pipeline.scheduler)
        scale = data_scale(pipeline.scheduler, sigma_data, cls.sigma_data)
        return cls(pipeline, scale, **cls.size_argument(size))  # type: ignore[call-arg]

    @classmethod
    def size_argument(cls, size: Mapping[str, float] | None) -> dict[str, Any]:
        """The argument `size` of the constructor, if there is one.

        Raises:
            ValueError: If the family has no such key, or a value is not positive or too large.
        """
        if not size:
            return {}
        if unknown := sorted(set(size) - set(cls.size_keys)):
            allowed = f"have the keys {', '.join(cls.size_keys)}" if cls.size_keys else "be empty"
            raise ValueError(
                f"teacher.size must {allowed} for a teacher of the family {cls.__name__}, got {unknown[0]!r}"
            )
        for name, value in size.items():
            most = MOST.get(name, LARGEST)
            if not isinstance(value, int | float) or not 0 < value <= most:
                raise ValueError(f"teacher.size.{name} must be above 0 and at most {most}, got {value!r}")
        return {"size": dict(size)}

    @classmethod
    def locate(cls, path: str) -> str:
        """Resolve `path` for `load` without loading anything.

        Raises:
            ValueError: If no pipeline can be at `path`.
        """
        return locate(path)

    @classmethod
    def stored_contents(cls, path: str) -> dict[str, str]:
        """Hashes of all files that `load` reads, by name, for keys of what is computed with the teacher.

        A family with its own `load` reads unknown files, so every file of the folder counts. It may override this.

        Args:
            path: As `locate` returns it.
        """
        return pipeline_contents(path, whole=cls.has_own_load(), **cls.options)

    @classmethod
    def has_own_load(cls) -> bool:
        """Whether the family overrides `load`."""
        return getattr(cls.load, "__func__", None) is not getattr(Loadable.load, "__func__", None)

    def contents(self) -> dict[str, str]:
        """Hashes of everything that this teacher computes with, as it is in memory, by name.

        Components that are not loaded yet are hashed as files. Use it before training changes the teacher.
        """
        stored = {} if self.origin is None else self.stored_contents(self.origin[0])
        return stored | {"precision": str(self.origin and self.origin[1]), "in memory": self.digest()}

    def digest(self) -> str:
        """A hash of the networks, schedules and settings in memory."""
        return key(without_runtime(vars(self)))
