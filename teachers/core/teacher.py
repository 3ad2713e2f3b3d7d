"""Teacher: the contract of a family. One frozen diffusers pipeline, its network seen in canonical time."""

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from teachers.core.denoiser import Condition, Denoiser
from teachers.core.few_step import refit_time_embedding, time_embeddings
from teachers.core.trigflow import expand
from teachers.loading.source import TEXT, Pipelines, load_pipeline, local_or_hub
from teachers.networks.adapters import Adapted, LoraBase
from teachers.networks.offload import Offload


def concatenate(one: Condition, two: Condition) -> dict[str, Tensor]:
    """Two conditions of the same keys as one batch."""
    return {key: torch.cat([one[key], two[key]]) for key in one}


def select(cond: Condition, rows: Tensor) -> dict[str, Tensor]:
    """The rows (N,) of a condition as a new condition of N samples."""
    return {key: value[rows] for key, value in cond.items()}


class Teacher(ABC):
    """One frozen pipeline of one family. Subclass, register in the entry-point group `distill.teachers`, and it trains.

    `denoiser` is frozen and in eval mode. `shape` is a latent's (C, H, W), `image_size` a picture's (H, W). `guided`
    says whether classifier-free guidance applies. Every method works on the teacher's device.
    """

    denoiser: Denoiser
    shape: tuple[int, ...]
    image_size: tuple[int, int]
    guided: ClassVar[bool] = True
    exports: ClassVar[bool] = True  # whether students of this family become diffusers pipelines
    pipelines: ClassVar[Pipelines] = ()  # the stock classes that it takes
    options: ClassVar[dict[str, Any]] = {}  # what their loader is told beside the path
    ignores_guidance: ClassVar[bool] = True  # whether an export leaves guidance off, whatever the call says
    refuses_steps: ClassVar[bool] = True  # whether an export refuses numbers of steps that it was not made for
    origin: tuple[str, torch.dtype] | None = None  # where `load` took it from, in which precision
    offloaded: Offload | None = None  # where its network is kept in host memory
    null_cache: Condition | None = None  # the condition of the empty prompt, one row, once it is known

    @classmethod
    def load(cls, path: str, device: torch.device, dtype: torch.dtype = torch.float32, sigma_data: float = 1.0) -> Self:
        """The teacher at `path`: a folder, a hub id, a .safetensors file, or a name that the family knows.

        Its text encoders are not read before `condition` is called.
        """
        place = cls.locate(path)
        stock = load_pipeline(cls.pipelines, place, TEXT, dtype=dtype, **cls.options)
        teacher = cls.wrap(stock.to(device), sigma_data)
        teacher.origin = (place, dtype)
        return teacher

    @classmethod
    def wrap(cls, pipeline: Any, sigma_data: float = 1.0) -> Self:
        """The teacher around a stock pipeline that is in memory; it freezes the pipeline's networks."""
        return cls(pipeline, sigma_data)  # type: ignore[call-arg]

    @classmethod
    def locate(cls, path: str) -> str:
        """`path` as the loader takes it; ValueError, one clear sentence, where nothing can be there. Loads nothing."""
        return local_or_hub(path)

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> latents (B, *shape) of unit variance."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, *shape) -> images (B, 3, H, W) in [-1, 1]."""

    @abstractmethod
    def condition(self, prompts: Sequence[str]) -> Condition:
        """What the pipeline itself would feed its network for these prompts (float32, first dimension len(prompts))."""

    def unload_encoders(self) -> None:
        """Let go of what encodes prompts and images, until it is asked for again. A family without any does nothing."""
        return

    @abstractmethod
    def pipeline(self, student: Denoiser, times: Sequence[float]) -> DiffusionPipeline:
        """A stock pipeline that runs `student` through the falling angles `times` (radians), one network call each."""

    @abstractmethod
    def calls(self, num_steps: int, times: Sequence[float] = ()) -> dict[str, Any]:
        """The call arguments with which `pipeline(...)` gives a `num_steps` student's images at the angles `times`."""

    def usual_call(self, num_steps: int, guidance: float) -> dict[str, Any]:
        """The call arguments with which people run the teacher itself."""
        return {"num_inference_steps": num_steps} | ({"guidance_scale": guidance} if self.guided else {})

    def enable_lora(self, rank: int) -> None:
        """From here on students are LoRA adapters of `rank` on the teacher's own network, of which there is one."""
        base = self.denoiser.network
        self.denoiser.network = Adapted(LoraBase(base, rank, [clock for _, clock in time_embeddings(base)]))

    def save_lora(self, student: Denoiser, times: Sequence[float], folder: Path) -> bool:
        """Write a `student` that is an adapter as folder/pytorch_lora_weights.safetensors, for the stock pipeline that
        runs it through `times` (`load_lora_weights`). False, and nothing written, where that pipeline takes no LoRA."""
        return False

    def lora_call(self, num_steps: int, times: Sequence[float] = ()) -> dict[str, Any]:
        """As `calls`, of the teacher's own pipeline with that file and the student's scheduler."""
        return self.calls(num_steps, times)

    def student(self) -> Denoiser:
        """A trainable float32 copy of the teacher's denoiser: before the first step it is the teacher."""
        return copy.deepcopy(self.denoiser).float().requires_grad_(True).eval()

    def refit_time_embedding(self, student: Denoiser, time_scale: float) -> None:
        """Put `student` on the gentle clock `time_scale * t`, as like the teacher as that allows (METHODS: a network
        told 1000 ticks has tangents that make sCM diverge). A family whose clock is gentle already does nothing."""
        refit_time_embedding(student, time_scale)

    def embed_guidance(self, student: Denoiser, guidance: float) -> None:
        """Make `student` take a guidance scale as an input, `guidance` where none is given."""
        raise ValueError("this teacher family's students take no guidance scale as input; leave method.guidances empty")

    def guidance_condition(self, student: Denoiser, guidance: Tensor) -> Condition:
        """What tells a student with embedded guidance its scales (B,): entries for its condition."""
        raise ValueError("this teacher family's students take no guidance scale as input")

    def velocity(self, x_t: Tensor, t: Tensor, cond: Condition, guidance: float | Tensor = 1.0) -> Tensor:
        """The guided velocity v_uncond + guidance (v_cond - v_uncond) in one batched call; 1.0 means none.

        `guidance` is one scale, or one a sample (B,). Guidance on epsilon, on x0 and on v are the same thing, since
        each is affine in the others at fixed x_t.
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

    def digest(self) -> str:
        """A hash of the network's weights and of what is done with them, for teachers that were not loaded from files."""
        total = hashlib.sha256(repr((type(self).__qualname__, self.shape, self.denoiser.prediction)).encode())
        for name, value in sorted(self.denoiser.state_dict().items()):
            total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return total.hexdigest()

    def offload(self, device: torch.device) -> None:
        """Keep the frozen network in host memory from here on, and on `device` while `velocity` runs it."""
        self.offloaded = Offload(self.denoiser.network, device)

    def _on_device(self) -> AbstractContextManager[None]:
        return nullcontext() if self.offloaded is None else self.offloaded.on_device()

    def null_condition(self, cond: Condition) -> Condition:
        """The condition of the empty prompt, as many rows as `cond` has."""
        rows = len(next(iter(cond.values())))
        return {key: value.expand(rows, *value.shape[1:]) for key, value in self.null_row().items()}

    def null_row(self) -> Condition:
        """`empty()`, made once and kept, since the encoders may leave memory."""
        if self.null_cache is None:
            self.null_cache = dict(self.encode_null_condition())
        return self.null_cache

    def encode_null_condition(self) -> Condition:
        """What the pipeline feeds its network on the unguided side, one row: for most families the empty prompt."""
        return self.condition([""])


def save_pipeline(pipeline: DiffusionPipeline, folder: Path) -> None:
    """`save_pretrained` in safetensors, such that a plain `from_pretrained` runs whatever precision it was stored in.

    Loaded without a dtype, diffusers' models come up in float32 but transformers' in the dtype that their config names;
    a half-precision text encoder would then feed a float32 network. So their configs are made to name float32.
    """
    pipeline.save_pretrained(folder, safe_serialization=True)
    for config in folder.glob("*/config.json"):
        values = json.loads(config.read_text())
        if "transformers_version" in values:
            config.write_text(json.dumps(values | {"dtype": "float32"}, indent=2) + "\n")
