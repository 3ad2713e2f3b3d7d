"""Encode the images, clips or sounds of a recipe into files for `data.latents`, also of another machine.

    fewstep encode RECIPE OUT [key=value ...]

Runs encode their data themselves, once; this command is for latents that several machines share.
"""

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from distill.config.recipe import Recipe
from distill.config.registry import TEACHERS, find
from distill.data import shards
from distill.data.encoding import Encoder
from distill.data.plan import open_images
from distill.data.stored_latents import AUTOENCODER, CAPTIONS, ENDING, LATENTS
from distill.training.environment import without_accelerate_variables
from distill.training.run_folder import stored_contents
from distill.training.setup import load_teacher
from teachers.loading.contents import autoencoder_key
from teachers.loading.embedded import EMBEDDED
from teachers.support.errors import reading
from teachers.support.files import atomic_write
from teachers.support.listing import visible
from teachers.support.text import counted

ROWS = 1024  # latents of one file


def encode(recipe: Recipe, out: Path) -> list[Path]:
    """Encode all samples of a recipe's `data.images`.

    Args:
        recipe: A checked recipe.
        out: The folder of the files. Run the command again to continue after an interruption.

    Returns:
        The files: each has up to 1,024 native latents, and their captions in its metadata.

    Raises:
        ValueError: If the data cannot be used, or the folder has safetensors files already.
    """
    if recipe.data.images is None or recipe.data.images in EMBEDDED:
        raise ValueError(f"data.images must be a folder or a dataset to be encoded, got {recipe.data.images!r}")
    if taken := visible(out, f"*{ENDING}"):
        raise ValueError(f"OUT must be a folder without {ENDING} files, got {taken[0]}; choose another folder")
    family = find(TEACHERS, recipe.teacher.family)
    if family.source:
        raise ValueError(
            f"teacher.family must be one without source images to be encoded, got {recipe.teacher.family!r}: its "
            "latents are not enough to train on"
        )
    with reading(recipe.data.images):
        images = open_images(recipe.data, family.takes_prompts(recipe.teacher.path), family.medium_class)
    for note in images.notes:
        print(note)
    with without_accelerate_variables():
        accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
    teacher = load_teacher(recipe, accelerator.device)
    contents = stored_contents(recipe)
    encoder, autoencoder = Encoder(teacher, recipe.cache, accelerator, contents), autoencoder_key(teacher, contents)
    captions, table = encoder.encode_images(images)
    out.mkdir(parents=True, exist_ok=True)
    files, dtype = [], teacher.origin[1] if teacher.origin else torch.float32
    for number, first in enumerate(range(0, len(captions), ROWS)):
        part = captions[first : first + ROWS]
        latents = table.gather(torch.arange(first, first + len(part)))["x"] * teacher.denoiser.path.sigma_data
        files.append(out / f"{number:05d}{ENDING}")
        with atomic_write(files[-1]) as temporary:
            stored = {LATENTS: shards.compact(latents.cpu(), dtype).contiguous()}
            origin = {} if autoencoder is None else {AUTOENCODER: autoencoder}
            save_file(stored, temporary, metadata={CAPTIONS: json.dumps(part), **origin})
    print(f"{counted(len(captions), 'latent')} in {counted(len(files), 'file')}: data.latents={out}")
    return files


if __name__ == "__main__":
    from distill.cli import main

    main("encode")
