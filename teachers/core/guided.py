"""`Guided`: the conditions of a teacher's prompts, and the velocity that they guide."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor

from teachers.core.contract import Contract
from teachers.core.denoiser import Condition, Denoiser
from teachers.core.trigflow import expand
from teachers.networks.offload import Offload


def concatenate(*conditions: Condition) -> dict[str, Tensor]:
    """Conditions with the same keys as one batch, in their order."""
    return {key: torch.cat([cond[key] for cond in conditions]) for key in conditions[0]}


class Guided(Contract, ABC):
    """The part of `Teacher` that encodes prompts and guides the velocity; `Teacher` describes the attributes."""

    source_entries: ClassVar[tuple[str, ...]] = ()  # of the condition: those of the source image, which guidance keeps
    denoiser: Denoiser
    offloaded: Offload | None = None
    null_cache: Condition | None = None
    negative_prompt: str | None = None
    image_guidance: float | None = None

    @abstractmethod
    def condition(self, prompts: Sequence[str]) -> Condition:
        """Encode prompts to the keyword arguments that the stock pipeline passes to its network.

        Args:
            prompts: The prompts, B of them.

        Returns:
            Tensors (B, ...); floating-point values are float32.
        """

    def prompt_limit(self) -> tuple[Any, int] | None:
        """The tokenizer and the number of its tokens after which `condition` cuts a prompt; None if it is unknown.

        It may load the text encoders.
        """
        return None

    def source_condition(self, prompts: Sequence[str], sources: Tensor | None) -> Condition:
        """`condition` with source images.

        Args:
            prompts: The prompts, B of them.
            sources: Source images (B, *source_shape) in [-1, 1], a mask with them in {0, 1}; None for families without
                source images, and for blank ones.

        Returns:
            Tensors (B, ...).

        Raises:
            ValueError: If the source images have another shape, or values that are not finite.
        """
        assert sources is None, f"{type(self).__name__} takes no source images"
        return self.condition(prompts)

    def exact_source_condition(self, prompts: Sequence[str], sources: Tensor | None) -> Condition:
        """`source_condition` in float32, as `exact_condition`."""
        assert sources is None, f"{type(self).__name__} takes no source images"
        return self.exact_condition(prompts)

    def exact_source_call(self, sources: Tensor) -> dict[str, Any]:
        """Call arguments of the stock pipeline that replace what it draws at random of source images (B, ...)."""
        return {}

    def meta_condition(self) -> Condition:
        """One row of a condition on the meta device, for a teacher whose networks are there.

        Families whose text encoders need values of tensors override it.
        """
        return self.condition([self.example_prompt])

    def exact_condition(self, prompts: Sequence[str]) -> Condition:
        """`condition` in float32, whatever the precision of the teacher, as an exported pipeline computes it.

        It is compared with exported pipelines. Families with half-precision encoders override it.
        """
        return self.condition(prompts)

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

    @property
    def embeds_guidance(self) -> bool:
        """Whether the teacher's network receives the guidance scale as an input, and so is evaluated only once."""
        return False

    def fix_guidance(self, guidance: float) -> None:
        """Evaluate further students at a guidance scale where their condition has none, if the network embeds scales.

        Args:
            guidance: The scale, in diffusers' convention (1.0: none).
        """
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
        """The entries of the condition that carry guidance scales to a student with embedded guidance.

        Args:
            student: A student after `embed_guidance`.
            guidance: The scales (B,).

        Returns:
            Tensors with B rows.

        Raises:
            ValueError: If the family does not support it.
        """
        raise ValueError("this teacher family has no input for the guidance scale")

    def null_condition(self, cond: Condition) -> Condition:
        """The condition of guidance's second evaluation, with as many rows as another and with its source images.

        Args:
            cond: A condition with prompts, B rows.

        Returns:
            `null_row` repeated B times, and the entries of `cond` that `source_entries` names.
        """
        rows = len(next(iter(cond.values())))
        null = {key: value.expand(rows, *value.shape[1:]) for key, value in self.null_row().items()}
        return null | {key: cond[key] for key in self.source_entries}

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

    def set_image_guidance(self, scale: float) -> None:
        """Use a scale for the guidance towards the source image. Call it before anything is computed.

        Raises:
            ValueError: If the pipelines of the family have no such scale.
        """
        self.check_image_guidance()
        self.image_guidance = scale

    @classmethod
    def check_image_guidance(cls) -> None:
        """Check that the family's pipelines take a scale for the guidance towards the source image.

        Raises:
            ValueError: If they do not.
        """
        if cls.image_guidance is None:
            raise ValueError(
                f"teacher.image_guidance must be null: pipelines of the family {cls.__name__} have no guidance scale "
                "for a source image"
            )

    def encode_null_condition(self) -> Condition:
        """What the stock pipeline passes to its network without a prompt, one row: usually the empty prompt."""
        return self.condition([""])

    def offload(self, device: torch.device) -> None:
        """Keep the frozen network in host memory; `velocity` copies it to `device` for each call."""
        self.offloaded = Offload(self.denoiser.network, device)

    def _on_device(self) -> AbstractContextManager[None]:
        return nullcontext() if self.offloaded is None else self.offloaded.on_device()
