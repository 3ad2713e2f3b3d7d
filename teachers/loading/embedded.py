"""The embedded teachers: very small pipelines that are part of this package, with prompts, latents and judges, by name.

"pocket" samples images, "pocket-video" clips, "pocket-audio" sounds. Each name can stand for a path, a source of
prompts, a set of training samples, features or a reference.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from teachers.loading.location import INDEX, local_or_hub
from teachers.support.checksums import check_shipped


@dataclass(frozen=True)
class Embedded:
    """An embedded teacher.

    Attributes:
        name: Its name in recipes and commands.
        medium: The name of its medium.
        title: Its name in messages.
        module: The package with its captions, judges and weights.
        maker: The command that makes its weights.
        known_prompts: The number of prompts that name every class; more would repeat them.
        judge_file: The file of its judge in the weights' folder.
        size: `teacher.size` of a recipe, for a pipeline whose configuration does not have it.
        examples_of_prompts: Prompts that a demonstration shows.
    """

    name: str
    medium: str
    title: str
    module: str
    maker: str
    known_prompts: int
    judge_file: str = "judge.safetensors"
    size: Mapping[str, float] = field(default_factory=dict)
    examples_of_prompts: tuple[str, ...] = ()

    @property
    def package(self) -> Any:
        """The package.

        Raises:
            ValueError: If this installation does not have it.
        """
        try:
            return importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            if error.name != self.module:
                raise
            raise ValueError(f"{self.title} is not part of this installation") from error

    @property
    def folder(self) -> Path:
        """The folder of the weights; it need not exist."""
        folder: Path = self.package.FOLDER
        return folder

    def present(self, file: str) -> Path:
        """A file of the weights, compared with their manifest.

        Raises:
            ValueError: If it is missing or damaged.
        """
        path = self.folder / file
        if not path.exists():
            raise ValueError(f'{self.title} has no {file} in {self.folder}; make it with "{self.maker}"')
        return check_shipped(self.folder, path, self.title)

    def pipeline(self) -> Path:
        """The folder of the pipeline, compared with the weights' manifest.

        Raises:
            ValueError: If it is missing or damaged.
        """
        path: Path = self.package.PIPELINE
        if not (path / INDEX).is_file():
            raise ValueError(f'{self.title} is not in {path}; make it with "{self.maker}"')
        return check_shipped(path.parent, path, self.title)

    def prompts(self) -> list[str]:
        """Prompts that name every class in every phrasing."""
        prompts: list[str] = self.package.balanced_prompts(self.known_prompts)
        return prompts

    def judge(self) -> nn.Module:
        """The judge, frozen, in float32 and in eval mode."""
        judge: nn.Module = self.package.JUDGE()
        stored = load_file(self.present(self.judge_file))
        judge.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in stored.items()})
        return judge.eval().requires_grad_(False)

    def reference(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean (D,) and covariance (D, D), in float64, of the judge's features of real samples, and such features.

        The samples were not trained on. The features are (N, D) in float32, or None if the weights lack them.
        """
        stored = load_file(self.present("reference.safetensors"))
        features = stored.get("features")
        return stored["mean"], stored["covariance"], None if features is None else features.float()

    def labelled_examples(self) -> tuple[Tensor, Tensor]:
        """Latents of real training samples, (N, ...) in float32, and their labels, (N,) or (N, 2)."""
        stored = load_file(self.present("latents.safetensors"))
        return stored["latents"].float() * self.package.LATENT_STEP, stored["labels"].long()

    def examples(self) -> tuple[Tensor, list[str]]:
        """Latents of real training samples, (N, ...) in float32, and a caption of each."""
        latents, labels = self.labelled_examples()
        rows = [row if isinstance(row, list) else [row] for row in labels.tolist()]
        chosen = torch.randint(1 << 30, (len(rows),), generator=torch.Generator().manual_seed(0)).tolist()
        phrasings = [self.package.captions(*row) for row in rows]
        return latents, [options[c % len(options)] for options, c in zip(phrasings, chosen, strict=True)]


EMBEDDED = {
    "pocket": Embedded(
        "pocket",
        "image",
        "the pocket teacher",
        "teachers.pocket",
        "python -m benchmarks.pocket.make",
        160,
        judge_file="classifier.safetensors",
        examples_of_prompts=("a photo of an ankle boot", "a picture of a dress", "one bag, front view"),
    ),
    "pocket-video": Embedded(
        "pocket-video",
        "video",
        "the pocket video teacher",
        "teachers.pocket_video",
        "python -m benchmarks.pocket.video.make fashion_mnist.npz",
        320,
        size={"height": 32, "width": 32, "frames": 9, "rate": 8, "max_sequence_length": 16},
        examples_of_prompts=("an ankle boot moving left", "a video of a dress growing", "a bag turning clockwise"),
    ),
    "pocket-audio": Embedded(
        "pocket-audio",
        "audio",
        "the pocket audio teacher",
        "teachers.pocket_audio",
        "python -m benchmarks.pocket.audio.make FluidR3_GM.sf2",
        1200,
        examples_of_prompts=("a flute playing a C4", "violin, A3", "a G#3 on the marimba"),
    ),
}


def locate(path: str) -> str:
    """Resolve `path`, which may name an embedded teacher, for loaders, without loading anything.

    Raises:
        ValueError: If no pipeline can be at `path`.
    """
    return str(EMBEDDED[path].pipeline()) if path in EMBEDDED else local_or_hub(path)


def usual_size(path: str | None) -> dict[str, float] | None:
    """`teacher.size` of an embedded teacher whose configuration does not have it; None for all others."""
    return dict(EMBEDDED[path].size) or None if path in EMBEDDED else None


def embedded_size(pipeline: str) -> dict[str, float] | None:
    """`usual_size` of the embedded teacher whose pipeline is in a folder; None for all other folders."""
    for teacher in EMBEDDED.values():
        if teacher.size and Path(pipeline) == teacher.package.PIPELINE:
            return dict(teacher.size)
    return None
