"""`Teacher`: the interface of a teacher family, one frozen diffusers pipeline in canonical time."""

import copy
import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, Self

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from teachers.core.contract import Contract
from teachers.core.denoiser import Condition, Denoiser
from teachers.core.time_embedding import has_time_embedding, refit_time_embedding, time_embeddings
from teachers.core.trigflow import expand
from teachers.loading.contents import pipeline_contents, without_runtime
from teachers.loading.embedded import locate
from teachers.loading.inspection import check_text_widths
from teachers.loading.location import config_source
from teachers.loading.source import TEXT_COMPONENTS, load_pipeline
from teachers.media import Image, Medium
from teachers.networks.adapters import Adapted, LoraBase
from teachers.networks.offload import Offload
from teachers.networks.time_layers import TimeEmbedding
from teachers.support.keys import key
from teachers.support.text import read_text

ExportSchedule = Literal["native", "bent"]


def concatenate(first: Condition, second: Condition) -> dict[str, Tensor]:
    """Two conditions with the same keys as one batch, `first` before `second`."""
    return {key: torch.cat([first[key], second[key]]) for key in first}


def height_and_width(sample_size: Any) -> tuple[int, int]:
    """The height and width of a network's `sample_size`, which may be one number.

    Raises:
        ValueError: If it is neither a positive number nor two.
    """
    sizes = [sample_size] * 2 if isinstance(sample_size, int) else list(sample_size or [])
    if len(sizes) != 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"sample_size of the network must be a number or [height, width], got {sample_size!r}")
    return sizes[0], sizes[1]


class Teacher(Contract, ABC):
    """One frozen pipeline of one family. `Contract` lists what a family provides.

    To add a family, subclass `Teacher` and register the class in the entry-point group `distill.teachers`. All methods
    work on the teacher's device.

    Attributes:
        denoiser: The frozen network, in eval mode.
        shape: Shape of one latent: (C, H, W) for images, (C, F, H, W) for clips, (C, L) for sounds.
        image_size: Height and width of a decoded image, in pixels; (0, 0) for other media.
        origin: Path and dtype that `load` used; None for a teacher that was built from a pipeline in memory.
        offloaded: Keeps the network in host memory; None if it is not offloaded.
        null_cache: The condition of the empty or the negative prompt, one row; None until it is computed.
        export_schedule: `export.schedule` of the recipe: whether exports keep the teacher's own noise schedule and
            timesteps ("native"), or bend its table so that the usual timesteps have the student's angles ("bent").
        negative_prompt: The prompt of guidance's second evaluation in place of the empty one; None: the empty one.
    """

    denoiser: Denoiser
    shape: tuple[int, ...]
    image_size: tuple[int, int] = (0, 0)
    origin: tuple[str, torch.dtype] | None = None
    offloaded: Offload | None = None
    null_cache: Condition | None = None
    export_schedule: ExportSchedule = "native"
    negative_prompt: str | None = None

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
            sigma_data: Standard deviation of the native latents or pixels; None: the family's `sigma_data`.
            size: Size of a sample by keys of `size_keys`; None: the pipeline's default.

        Returns:
            The teacher.

        Raises:
            ValueError: If there is no such pipeline, this family does not take it, or it cannot have that size.
        """
        if not cls.pipelines:
            raise ValueError(
                f"{cls.__name__}.pipelines must name a pipeline class, got (); build the teacher in Python"
            )
        source = cls.locate(path)
        check_text_widths(config_source(source), cls.network, cls.text_widths)
        from teachers.loading.trial import check_teacher_once  # it needs this module

        check_teacher_once(source, cls, size)
        owners = (cls, *cls.components)
        stock = load_pipeline(cls.pipelines, source, TEXT_COMPONENTS, owners, dtype=dtype, **cls.options)
        scale = cls.sigma_data if sigma_data is None else sigma_data
        teacher = cls.wrap(stock.to(device), scale, **cls.size_argument(size))
        teacher.origin = (source, dtype)
        return teacher

    @classmethod
    def wrap(cls, pipeline: Any, sigma_data: float | None = None, size: Mapping[str, float] | None = None) -> Self:
        """Build a teacher from a diffusers pipeline in memory; the pipeline's networks are frozen in place.

        Args:
            pipeline: A pipeline of one of the classes in `pipelines`.
            sigma_data: Standard deviation of the native latents or pixels; None: the family's `sigma_data`.
            size: Size of a sample by keys of `size_keys`; None: the pipeline's default.

        Returns:
            The teacher.
        """
        scale = cls.sigma_data if sigma_data is None else sigma_data
        return cls(pipeline, scale, **cls.size_argument(size))  # type: ignore[call-arg]

    @classmethod
    def size_argument(cls, size: Mapping[str, float] | None) -> dict[str, Any]:
        """The argument `size` of the constructor, if there is one.

        Raises:
            ValueError: If the family has no such key, or a value is not positive.
        """
        if not size:
            return {}
        if unknown := sorted(set(size) - set(cls.size_keys)):
            allowed = f"have the keys {', '.join(cls.size_keys)}" if cls.size_keys else "be empty"
            raise ValueError(
                f"teacher.size must {allowed} for a teacher of the family {cls.__name__}, got {unknown[0]!r}"
            )
        for name, value in size.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"teacher.size.{name} must be above 0, got {value}")
        return {"size": dict(size)}

    @classmethod
    def locate(cls, path: str) -> str:
        """Resolve `path` for `load` without loading anything.

        Raises:
            ValueError: If no pipeline can be at `path`.
        """
        return locate(path)

    @property
    def medium(self) -> Medium:
        """The kind and the size of a decoded sample; families of other media than images override it."""
        return Image(*self.image_size)

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Encode samples (B, *medium.shape), such as images (B, 3, H, W), in [-1, 1] to latents (B, *shape).

        The latents have unit variance.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, *shape) of unit variance to samples (B, *medium.shape) in [-1, 1]."""

    @abstractmethod
    def condition(self, prompts: Sequence[str]) -> Condition:
        """Encode prompts to the keyword arguments that the stock pipeline passes to its network.

        Args:
            prompts: The prompts, B of them.

        Returns:
            Tensors (B, ...); floating-point values are float32.
        """

    def meta_condition(self) -> Condition:
        """One row of a condition on the meta device, for a teacher whose networks are there.

        Families whose text encoders need values of tensors override it.
        """
        return self.condition([""])

    def exact_condition(self, prompts: Sequence[str]) -> Condition:
        """`condition` in float32, whatever the precision of the teacher, as an exported pipeline computes it.

        It is compared with exported pipelines. Families with half-precision encoders override it.
        """
        return self.condition(prompts)

    def exact_decode(self, latents: Tensor) -> Tensor:
        """`decode` in float32, whatever the precision of the teacher, as an exported pipeline computes it."""
        return self.decode(latents)

    def unpack(self, native: Tensor) -> Tensor:
        """Native latents (B, *shape) from the form in which the stock pipeline passes them to its network."""
        return native

    def timesteps(self, scheduler: Any) -> Tensor:
        """The timesteps (N,) of a stock pipeline's scheduler in the unit of the noise path."""
        return torch.as_tensor(scheduler.timesteps).double()

    def added_noise(self, scheduler: Any, sample: Tensor) -> Tensor | None:
        """The noise that a step of an exported pipeline has added, where `torch.randn` does not draw it.

        Args:
            scheduler: The exported pipeline's scheduler after the step.
            sample: What the step returned.

        Returns:
            Standard normal noise, shape of `sample`; None if it was drawn by `torch.randn`, or if there is none.
        """
        return None

    def unload_encoders(self) -> None:
        """Free the memory of text and image encoders until they are used again; no-op for families without any."""
        return

    @abstractmethod
    def pipeline(self, student: Denoiser, times: Sequence[float]) -> DiffusionPipeline:
        """Build a stock pipeline that samples `student`.

        Args:
            student: The student.
            times: Decreasing angles in radians, one network call each.

        Returns:
            A diffusers pipeline that needs no code of this project.

        Raises:
            ValueError: If the times are invalid for the student's path.
        """

    @abstractmethod
    def calls(self, num_steps: int, times: Sequence[float] = ()) -> dict[str, Any]:
        """The call arguments of an exported pipeline.

        Args:
            num_steps: Number of sampling steps.
            times: The angles of these steps, in radians.

        Returns:
            Keyword arguments for the pipeline's `__call__`.
        """

    def native_times(self, student: Denoiser, times: Sequence[float]) -> list[float]:
        """The angles of an export with `export_schedule`: at whole native timesteps, or `times` themselves.

        Args:
            student: The student.
            times: Decreasing angles in radians.

        Returns:
            The angles that are nearest to `times` on the native schedule; `times` if the pipeline's schedule is
            continuous, if it cannot sample there, or with `export_schedule` "bent".
        """
        return list(times)

    def native_candidates(self, student: Denoiser, candidates: Sequence[Sequence[float]]) -> list[list[float]]:
        """The different schedules of an export with `export_schedule` that are nearest to a method's `candidates`."""
        found = [self.native_times(student, times) for times in candidates]
        return [times for i, times in enumerate(found) if times not in found[:i]]

    def native_timesteps(self, student: Denoiser, times: Sequence[float]) -> list[int] | None:
        """The whole native timesteps that an exported pipeline passes at `times`; None if it has another schedule."""
        return None

    def timesteps_call(self, student: Denoiser, times: Sequence[float]) -> dict[str, Any]:
        """The call arguments beside `calls` that select a student's native timesteps; {} if their number does."""
        return {}

    def exportable_times(self, times: list[float]) -> list[float]:
        """The angles nearest to a method's decreasing angles `times` that an exported pipeline can sample."""
        return times

    def check_exportable(self, times: Sequence[float]) -> None:
        """Check that an exported pipeline can sample at decreasing angles `times`; runs check it before training.

        Raises:
            ValueError: If it cannot; by default it can at all angles.
        """
        return

    def usual_call(self, num_steps: int, guidance: float) -> dict[str, Any]:
        """The call arguments of the teacher's own pipeline, for `num_steps` steps at a guidance scale."""
        usual: dict[str, Any] = {"num_inference_steps": num_steps}
        usual |= {"guidance_scale": guidance} if self.guided else {}
        usual |= {} if self.negative_prompt is None else {"negative_prompt": self.negative_prompt}
        call = {self.call_names.get(name, name): value for name, value in usual.items()}
        takes = set().union(*(inspect.signature(kind.__call__).parameters for kind in self.pipelines)) or set(call)
        return {name: value for name, value in call.items() if name in takes}

    def enable_lora(self, rank: int) -> None:
        """Make all further students LoRA adapters of the given rank on the teacher's network, which is shared."""
        base = self.denoiser.network
        self.denoiser.network = Adapted(LoraBase(base, rank, self.time_embeddings(base)))

    def time_embeddings(self, network: nn.Module) -> list[TimeEmbedding]:
        """The time embeddings of a network, whose first layers each LoRA adapter has its own copy of.

        Returns:
            The features of timesteps and the layers that follow them; empty for a network without a time embedding of
            diffusers, which then cannot be trained on rescaled time (`refit_time_embedding`).
        """
        return time_embeddings(network) if has_time_embedding(network) else []

    def save_lora(self, student: Denoiser, times: Sequence[float], folder: Path) -> bool:
        """Save a student that is a LoRA adapter, for `load_lora_weights` of the stock pipeline.

        Args:
            student: A student whose network is `Adapted`.
            times: Decreasing angles in radians, at which the pipeline samples it.
            folder: Receives pytorch_lora_weights.safetensors.

        Returns:
            False if the stock pipeline does not support LoRA; nothing is written then.
        """
        return False

    def lora_call(self, num_steps: int, times: Sequence[float] = ()) -> dict[str, Any]:
        """The call arguments of the stock pipeline with the LoRA file and the student's scheduler; see `calls`."""
        return self.calls(num_steps, times)

    def student(self) -> Denoiser:
        """A trainable float32 copy of the teacher's denoiser. Before training it computes what the teacher computes."""
        return copy.deepcopy(self.denoiser).float().requires_grad_(True).eval()

    def refit_time_embedding(self, student: Denoiser, time_scale: float) -> None:
        """Switch a student to the rescaled time `time_scale * t`, in place, with a refitted time embedding.

        sCM diverges on native timesteps 0..999, because the tangents of their fast features are too large. Families
        whose time features are slow enough do nothing.
        """
        refit_time_embedding(student, time_scale)

    @property
    def embeds_guidance(self) -> bool:
        """Whether the teacher's network receives the guidance scale as an input, and so is evaluated only once."""
        return False

    def fix_guidance(self, guidance: float) -> None:
        """Evaluate further students at this guidance scale where their condition has none, if the network embeds it."""
        return

    def embed_guidance(self, student: Denoiser, guidance: float) -> None:
        """Add an input for the guidance scale to a student, in place.

        Args:
            student: The student.
            guidance: The scale that applies if the condition has none.

        Raises:
            ValueError: If the family does not support it.
        """
        raise ValueError("method.guidances must be empty: this teacher family has no input for the guidance scale")

    def guidance_condition(self, student: Denoiser, guidance: Tensor) -> Condition:
        """The entries of the condition that carry guidance scales (B,) to a student with embedded guidance."""
        raise ValueError("this teacher family has no input for the guidance scale")

    def velocity(self, x_t: Tensor, t: Tensor, cond: Condition, guidance: float | Tensor = 1.0) -> Tensor:
        """The guided velocity v_uncond + guidance (v_cond - v_uncond), in one batched call.

        Guidance on epsilon, x0 or v is equivalent, because each is an affine function of the others at fixed x_t.

        Args:
            x_t: Noisy latents of unit variance, (B, *shape).
            t: Angles in radians, (B,).
            cond: The network's condition, B rows.
            guidance: One scale, or one for each sample (B,); 1.0 means none.

        Returns:
            The velocity, shape and dtype of `x_t`.
        """
        if not self.guided or (not isinstance(guidance, Tensor) and guidance == 1.0):
            with self._on_device():
                return self.denoiser.velocity(x_t, t, cond)
        both = concatenate(cond, self.null_condition(cond))
        with self._on_device():
            with_prompt, without = self.denoiser.velocity(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        if isinstance(guidance, Tensor):
            guidance = expand(guidance, x_t).to(x_t.dtype)
        return without + guidance * (with_prompt - without)

    @classmethod
    def stored_contents(cls, path: str) -> dict[str, str]:
        """Hashes of all files that `load` reads, by name, for keys of what is computed with the teacher.

        A family with its own `load` reads unknown files, so every file of the folder counts. It may override this.

        Args:
            path: As `locate` returns it.
        """
        own_load = getattr(cls.load, "__func__", None) is not getattr(Teacher.load, "__func__", None)
        return pipeline_contents(path, whole=own_load, **cls.options)

    def contents(self) -> dict[str, str]:
        """Hashes of everything that this teacher computes with, as it is in memory, by name.

        Components that are not loaded yet are hashed as files. Use it before training changes the teacher.
        """
        stored = {} if self.origin is None else self.stored_contents(self.origin[0])
        return stored | {"precision": str(self.origin and self.origin[1]), "in memory": self.digest()}

    def digest(self) -> str:
        """A hash of the networks, schedules and settings in memory."""
        return key(without_runtime(vars(self)))

    def offload(self, device: torch.device) -> None:
        """Keep the frozen network in host memory; `velocity` copies it to `device` for each call."""
        self.offloaded = Offload(self.denoiser.network, device)

    def _on_device(self) -> AbstractContextManager[None]:
        return nullcontext() if self.offloaded is None else self.offloaded.on_device()

    def null_condition(self, cond: Condition) -> Condition:
        """The condition of the empty prompt, with as many rows as `cond`."""
        rows = len(next(iter(cond.values())))
        return {key: value.expand(rows, *value.shape[1:]) for key, value in self.null_row().items()}

    def null_row(self) -> Condition:
        """One row of the null condition. It is computed once, because the encoders may be unloaded later."""
        if self.null_cache is None:
            self.null_cache = dict(self.encode_unguided())
        return self.null_cache

    def encode_unguided(self) -> Condition:
        """The condition of guidance's second evaluation, one row: the negative prompt, or the null condition."""
        if self.negative_prompt is None:
            return self.encode_null_condition()
        return self.encode_negative_prompt(self.negative_prompt)

    def encode_negative_prompt(self, prompt: str) -> Condition:
        """What the stock pipeline passes to its network for a negative prompt, one row."""
        return self.condition([prompt])

    def set_negative_prompt(self, prompt: str) -> None:
        """Use a negative prompt in place of the empty one. Call it before conditions are encoded.

        Raises:
            ValueError: If the teacher has no second evaluation that a negative prompt could be used in.
        """
        self.check_negative_prompt()
        if self.embeds_guidance:
            raise ValueError(
                "teacher.negative_prompt must be null: this teacher's network receives the guidance scale as an input "
                "and is evaluated only once"
            )
        self.negative_prompt, self.null_cache = prompt, None

    @classmethod
    def check_negative_prompt(cls) -> None:
        """Check that the family's pipelines take a negative prompt.

        Raises:
            ValueError: If they do not.
        """
        takes = all("negative_prompt" in inspect.signature(kind.__call__).parameters for kind in cls.pipelines)
        if not (cls.guided and cls.pipelines and takes):
            raise ValueError(
                f"teacher.negative_prompt must be null: pipelines of the family {cls.__name__} take no negative prompt"
            )

    def encode_null_condition(self) -> Condition:
        """What the stock pipeline passes to its network without a prompt, one row: usually the empty prompt."""
        return self.condition([""])


def save_pipeline(pipeline: DiffusionPipeline, folder: Path, **options: Any) -> None:
    """Save a pipeline as safetensors so that `from_pretrained` without a dtype loads all of it in float32.

    diffusers loads its models in float32 by default, but transformers uses the dtype in a model's config. A
    half-precision text encoder would then be combined with a float32 network, so the stored configs say float32.

    Args:
        pipeline: The pipeline.
        folder: Where to save it.
        options: Further arguments of `save_pretrained`, such as `max_shard_size`.
    """
    pipeline.save_pretrained(folder, safe_serialization=True, **options)
    for config in folder.glob("*/config.json"):
        values = json.loads(read_text(config))
        if "transformers_version" in values:
            config.write_text(json.dumps(values | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
