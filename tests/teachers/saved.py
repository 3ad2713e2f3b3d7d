"""Tiny random pipelines that are saved when a test first needs them."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def saved(root: Path, tokenizer: Any, builders: Mapping[str, tuple[Any, ...]]) -> Callable[[str], tuple[Any, ...]]:
    """A function of a name of `builders` that gives (family, folder), and a size if there is one.

    Args:
        root: Where the folders are.
        tokenizer: What the builders take.
        builders: For each name the family, a function that builds the pipeline, and perhaps the size of its samples.
    """

    @functools.cache
    def make(name: str) -> tuple[Any, ...]:
        family, build, *size = builders[name]
        folder = root / name.replace(" ", "_").replace(",", "")
        torch.manual_seed(0)
        build(tokenizer).save_pretrained(folder)
        return family, folder, *size

    return make
