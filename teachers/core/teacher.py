"""`Teacher`: the interface of a teacher family, one frozen diffusers pipeline in canonical time."""

import copy
import inspect
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from teachers.core.denoiser import Denoiser
from teachers.core.exportable import Exportable
from teachers.core.guided import Guided
from teachers.core.loadable import Loadable
from teachers.core.time_embedding import has_time_embedding, refit_time_embedding, time_embeddings
from teachers.media import Image, Medium
from teachers.networks.adapters import Adapted, LoraBase
from teachers.networks.time_layers import TimeEmbedding


class Teacher(Loadable, Guided, Exportable, ABC):
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
        image_guidance: The scale of the guidance towards the source image; None for families without one.
        negative_prompt: The prompt of guidance's second evaluation in place of the empty one; None: the empty one.
    """

    shape: tuple[int, ...]
    image_size: tuple[int, int] = (0, 0)

    @property
    def medium(self) -> Medium:
        """The kind and the size of a decoded sample; families of other media than images override it."""
        return Image(*self.image_size)

    @property
    def source_shape(self) -> tuple[int, ...]:
        """The shape of a source image: (3, H, W), or (4, H, W) with a mask; (0, H, W) for families without any."""
        return {0: 0, 1: 3, 2: 4}[len(self.source)], *self.image_size

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Encode samples to latents.

        Args:
            images: Samples (B, *medium.shape), such as images (B, 3, H, W), in [-1, 1].

        Returns:
            Latents (B, *shape) of unit variance.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to samples.

        Args:
            latents: Latents (B, *shape) of unit variance.

        Returns:
            Samples (B, *medium.shape) in [-1, 1].
        """

    def exact_decode(self, latents: Tensor) -> Tensor:
        """`decode` in float32, whatever the precision of the teacher, as an exported pipeline computes it."""
        return self.decode(latents)

    def unpack(self, native: Tensor) -> Tensor:
        """Undo the form in which the stock pipeline passes latents to its network, such as a sequence of patches.

        Args:
            native: Latents in this form; by default (B, *shape).

        Returns:
            The same latents (B, *shape).
        """
        return native

    def timesteps(self, scheduler: Any) -> Tensor:
        """The timesteps of a stock pipeline's scheduler in the unit of the noise path.

        Args:
            scheduler: The scheduler, after `set_timesteps` with N steps.

        Returns:
            The timesteps (N,).
        """
        return self.denoiser.path.of_network_time(torch.as_tensor(scheduler.timesteps))

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

    def enable_lora(self, rank: int) -> None:
        """Make all further students LoRA adapters on the teacher's network, which they share.

        Args:
            rank: The adapters' rank, at least 1.
        """
        base = self.denoiser.network
        self.denoiser.network = Adapted(LoraBase(base, rank, self.time_embeddings(base)))

    def time_embeddings(self, network: nn.Module) -> list[TimeEmbedding]:
        """The time embeddings of a network, whose first layers each LoRA adapter has its own copy of.

        Returns:
            The features of timesteps and the layers that follow them; empty for a network without a time embedding of
            diffusers, which then cannot be trained on rescaled time (`refit_time_embedding`).
        """
        return time_embeddings(network) if has_time_embedding(network) else []

    def student(self) -> Denoiser:
        """A trainable float32 copy of the teacher's denoiser. Before training it computes what the teacher computes."""
        return copy.deepcopy(self.denoiser).float().requires_grad_(True).eval()

    def refit_time_embedding(self, student: Denoiser, time_scale: float) -> None:
        """Switch a student to the rescaled time `time_scale * t`, in place, with a refitted time embedding.

        sCM diverges on native timesteps 0..999, because the tangents of their fast features are too large. Families
        whose time features are slow enough do nothing, nor do noise paths with `slow_time`.

        Args:
            student: The student.
            time_scale: Factor of the network's time.
        """
        if not student.path.slow_time:
            refit_time_embedding(student, time_scale)

    def usual_call(self, num_steps: int, guidance: float) -> dict[str, Any]:
        """The call arguments of the teacher's own pipeline.

        Args:
            num_steps: Number of sampling steps.
            guidance: Classifier-free guidance scale, in diffusers' convention (1.0: none).

        Returns:
            Keyword arguments for the pipeline's `__call__`, without those that it does not take.
        """
        usual: dict[str, Any] = {"num_inference_steps": num_steps}
        usual |= {"guidance_scale": guidance} if self.guided else {}
        usual |= {} if self.image_guidance is None else {"image_guidance_scale": self.image_guidance}
        usual |= {} if self.negative_prompt is None else {"negative_prompt": self.negative_prompt}
        call = {self.call_names.get(name, name): value for name, value in usual.items()}
        takes = set().union(*(inspect.signature(kind.__call__).parameters for kind in self.pipelines)) or set(call)
        return {name: value for name, value in call.items() if name in takes}
