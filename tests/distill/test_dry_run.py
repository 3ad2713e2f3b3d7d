"""`fewstep train RECIPE --dry-run`."""

import dataclasses
import io

import datasets
import pyarrow as pa
import pytest
import yaml
from PIL import Image
from pyarrow import parquet

from distill.config.recipe import load, method_options, with_defaults
from distill.config.sections import DataRecipe, OptimizerRecipe
from distill.config.shipped import shipped
from distill.data.images import FirstUsable
from distill.data.plan import open_images
from distill.dry_run import dry_run
from tests.settings import FAST


@pytest.mark.slow
def test_every_default_of_a_recipe_is_the_one_that_is_used():
    for name in shipped():
        recipe = load(name)
        complete = with_defaults(recipe)
        cls, options = method_options(recipe)
        assert method_options(complete)[1] == options
        assert set(complete.method) == {"name", *(field.name for field in dataclasses.fields(options))}
        assert list(complete.optimizers) == list(cls.PHASES)
        for phase, optimizer in complete.optimizers.items():
            assert optimizer == recipe.optimizers.get(phase, OptimizerRecipe())


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A table of five captioned images; the first three cannot be used."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    content = io.BytesIO()
    Image.effect_noise((32, 32), 20).convert("RGB").save(content, "PNG")
    good = content.getvalue()
    rows = {"image": [good[:500], b"", good, good, good], "text": ["a coat", "a coat", None, "a coat", "a bag"]}
    parquet.write_table(pa.table(rows), tmp_path / "images.parquet")
    return tmp_path / "images.parquet"


def test_rows_that_cannot_be_used_do_not_count_among_the_first(table):
    images = open_images(DataRecipe(images=str(table)), captioned=True)
    first = FirstUsable(images, 2, lambda row: row.caption is not None and bool(row.source))
    assert [row.name.split()[1] for block in first.blocks(10) for row in block.read()] == ["0", "3"]


@pytest.mark.slow
def test_a_dry_run_prints_every_default_and_passes_over_unusable_images(table, text_pipeline, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"name: run\noutput: {tmp_path / 'runs'}\ndata: {{images: {table}}}\nmethod: {{name: lcm}}\n"
        f"teacher: {{path: {text_pipeline}, guidance: 2.0}}\n"
    )
    dry_run(load(file, [*FAST, "train.batch_size=2"]))
    out = capsys.readouterr().out
    text, _, rest = out.removeprefix("recipe, with every default:\n").partition("\ndata: ")
    shown = yaml.safe_load(text)
    assert shown["method"].keys() > {"name"} and shown["optimizers"]["student"]["lr"] == OptimizerRecipe().lr
    assert "captioned images" in rest and rest.endswith("on this machine with 1 process\n")
    assert not (tmp_path / "runs").exists()
