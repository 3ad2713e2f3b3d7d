"""Recipes of short runs on tiny pipelines."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from distill.config.recipe import Recipe, load
from tests.settings import FAST

# In float32, because half precision is emulated on CPUs and several times slower.
LORA = [*FAST, "memory.tier=lora", "memory.rank=4", "teacher.precision=float32"]
METHODS = {
    "dmd": "{name: dmd, regression_weight: 0.5, regression_distance: latent, regression_pairs: 6, "
    "gan_weight: 0.1, r1_weight: 0.1, fake_score_updates: 1}",
    "scm": "{name: scm, adaptation_steps: 1, tangent_warmup: 2, learned_weighting: true, second_times: [0.5, 0.9]}",
    "rcm": "{name: rcm, scm: {adaptation_steps: 1, second_times: [0.7]}, dmd: {fake_score_updates: 1}}",
    "sid": "{name: sid, gan_weight: 0.1, fake_score_updates: 1, fake_score_alignment: 0.05}",
    "f_distill": "{name: f_distill, gan_weight: 0.1, fake_score_updates: 1}",
    "lcm": "{name: lcm, target_ema: 0.5, second_times: [0.5, 0.9]}",
}


@pytest.fixture
def two_step_recipe(tmp_path) -> Callable[..., Recipe]:
    """two_step_recipe(family, pipeline, *overrides): a recipe of DMD with two steps and two prompts."""
    (tmp_path / "prompts.txt").write_text("a coat\na boot\n")

    def make(family: str, pipeline: Path, *overrides: str) -> Recipe:
        file = tmp_path / "recipe.yaml"
        file.write_text(
            f"name: run\noutput: {tmp_path / 'runs'}\ndata: {{prompts: {tmp_path / 'prompts.txt'}}}\n"
            "method: {name: dmd, fake_score_updates: 1, regression_weight: 0.0}\n"
            f"teacher: {{family: {family}, path: {pipeline}, guidance: 2.0}}\n"
        )
        return load(file, [*FAST, "train.batch_size=2", "train.steps=2", *overrides])

    return make


@pytest.fixture
def lora_recipe(text_pipeline, tmp_path) -> Callable[..., Recipe]:
    """lora_recipe(method, *overrides): a recipe with memory.tier=lora, unless it is overridden."""
    images = tmp_path / "images"
    images.mkdir()
    for i in range(3):
        Image.new("RGB", (32, 32), (50 * i, 20, 90)).save(images / f"{i}.png")
        (images / f"{i}.txt").write_text("a coat")

    def make(method: str, *overrides: str) -> Recipe:
        file = tmp_path / f"{method}.yaml"
        file.write_text(
            f"name: {method}\noutput: {tmp_path / 'runs'}\ndata: {{images: {images}}}\nmethod: {METHODS[method]}\n"
            f"teacher: {{family: stable_diffusion, path: {text_pipeline}, guidance: 2.0}}\n"
        )
        return load(file, [*LORA, *overrides])

    return make
