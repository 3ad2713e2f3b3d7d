"""A folder of clips as VBench expects it: `<prompt>-<index>.mp4` with indices from 0.

VBench looks for five clips of each of its prompts (25 for its dimension "temporal_flickering") by these exact names,
and takes the ending of all of them from any file in the folder: the folder must contain nothing else. This module only
writes the clips; run VBench itself on the folder. Source: Huang et al., "VBench" (arXiv 2311.17982) and its code.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from teachers.media import Video
from teachers.support.text import printable

ENDING = ".mp4"
MOST_BYTES = 255 - 13  # of a file's name on usual file systems, less what `atomic_write` adds to a temporary name
FORBIDDEN = ("/", "\\", "\0")


def vbench_name(prompt: str, index: int) -> str:
    """The name of a clip's file.

    Args:
        prompt: The prompt, exactly as VBench lists it.
        index: Which of the prompt's clips it is, from 0.

    Raises:
        ValueError: If no file can have this name.
    """
    name = f"{prompt}-{index}{ENDING}"
    shown = printable(prompt)[:60]
    if not prompt.strip() or prompt.startswith("."):
        raise ValueError(f'a prompt of VBench must not be empty or begin with a dot, got "{shown}"')
    if any(character in name for character in FORBIDDEN) or not prompt.isprintable():
        raise ValueError(
            f'the prompt "{shown}" must not contain /, \\ or control characters: it is a file name of VBench'
        )
    if len(name.encode("utf-8", "replace")) > MOST_BYTES:
        raise ValueError(
            f'the prompt "{shown}..." must have at most {MOST_BYTES - 8} bytes: it is a file name of VBench'
        )
    return name


def create_folder(folder: Path) -> None:
    """Create a folder for clips.

    Raises:
        ValueError: If it is a file, or contains other files.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} must be a folder for clips, got a file")
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted(file.name for file in folder.iterdir() if file.suffix not in (ENDING, ".tmp"))
    if others:
        raise ValueError(
            f"{folder} must contain clips only, because VBench reads all its files, got {printable(others[0])}"
        )


def save_for_vbench(
    clips: Tensor, prompts: Sequence[str], folder: Path, medium: Video, first: dict[str, int] | None = None
) -> list[Path]:
    """Write clips to a folder that VBench evaluates.

    Args:
        clips: Clips (B, 3, F, H, W) in [0, 1].
        prompts: Their B prompts; a prompt that occurs several times has several clips.
        folder: The folder. It is created if it does not exist.
        medium: The medium of the clips.
        first: The next index of each prompt, 0 if it is missing. It is updated, so that later calls continue.

    Returns:
        The files.

    Raises:
        ValueError: If a prompt cannot be a file name, or the folder contains other files.
    """
    if len(prompts) != len(clips):
        raise ValueError(f"every clip must have a prompt, got {len(clips)} clips and {len(prompts)} prompts")
    counts = {} if first is None else first
    medium.check_shape(clips)
    names = []
    for prompt in prompts:
        names.append(vbench_name(prompt, counts.get(prompt, 0)))
        counts[prompt] = counts.get(prompt, 0) + 1
    create_folder(folder)
    for name, clip in zip(names, clips, strict=True):
        medium.save(clip[None], folder / name)
    return [folder / name for name in names]
