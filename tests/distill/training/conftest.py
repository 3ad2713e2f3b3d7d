"""Recipes of every method on the tiny pipeline with captioned images."""

from collections.abc import Callable

import pytest
from PIL import Image

from distill.config.recipe import Recipe, load
from tests.settings import FAST

LORA = [*FAST, "memory.tier=lora", "memory.rank=4"]
METHODS = {
    "dmd": "{name: dmd, regression_weight: 0.5, regression_distance: latent, regression_pairs: 6, "
    "gan_weight: 0.1, r1_weight: 0.1, fake_score_updates: 1}",
    "scm": "{name: scm, adaptation_steps: 1, tangent_warmup: 2, learned_weighting: true, second_times: [0.5, 0.9]}",
    "rcm": "{name: rcm, scm: {adaptation_steps: 1, second_times: [0.7]}, dmd: {fake_score_updates: 1}}",
}


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
