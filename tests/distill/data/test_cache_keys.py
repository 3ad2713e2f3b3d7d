"""What is encoded, and teacher pairs, are made again exactly if something that they are made from changes."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from distill.config.recipe import Recipe
from distill.config.sections import DataRecipe, TeacherRecipe
from distill.data import dataset as data
from distill.data.encoding import Encoder
from distill.data.images import ImageFolder
from distill.data.plan import plan as plan_of
from distill.data.teacher_pairs import pairs_key
from distill.training.run_folder import stored_contents
from distill.training.setup import load_teacher
from teachers.families.stable_diffusion import StableDiffusion
from teachers.support.keys import key

CPU = torch.device("cpu")


def recipe_for(path, output, family="stable_diffusion", **teacher) -> Recipe:
    source = TeacherRecipe(str(path), family, guidance=2.0)
    return Recipe("r", dataclasses.replace(source, **teacher), {"name": "dmd"}, output=str(output))


def prepare(recipe: Recipe, images: Path | None = None):
    """The dataset of a run, and the number of shards in its cache."""
    teacher = load_teacher(recipe, CPU)
    settings = DataRecipe(images=images and str(images), prompts=None if images else "pocket", limit=20)
    plan = plan_of(settings, images is not None, teacher.guided)
    dataset = data.prepare(plan, teacher, recipe, Accelerator(cpu=True), stored_contents(recipe))
    return dataset, len(list(recipe.cache.rglob("*.safetensors")))


def write_images(folder: Path) -> Path:
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (16, 16), (50 * i, 20, 90)).save(folder / f"{i}.bmp")
        (folder / f"{i}.txt").write_text(f"number {i}")
    return folder


# --- the data ---------------------------------------------------------------------------------------------------------


def keep_time(file: Path, edit) -> None:
    """Edit a file and restore its modification time."""
    status = file.stat()
    edit(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def change_pixel(folder):
    """The file keeps its name, size and modification time."""
    file = folder / "1.bmp"
    keep_time(file, lambda f: f.write_bytes(f.read_bytes()[:-1] + b"\7"))


def change_caption(folder):
    keep_time(folder / "1.txt", lambda f: f.write_text("number 9"))


def add_metadata(folder):
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "1.bmp", "text": "number 9"}) + "\n")


def remove_image(folder):
    (folder / "2.bmp").unlink()


def change_order(folder):
    for name in ("bmp", "txt"):
        (folder / f"0.{name}").rename(folder / f"5.{name}")


@pytest.mark.parametrize("edit", [change_pixel, change_caption, add_metadata, remove_image, change_order])
def test_any_change_of_a_folder_of_images_changes_its_key(tmp_path, edit):
    folder = write_images(tmp_path / "images")
    before = ImageFolder(folder, True)
    edit(folder)
    after = ImageFolder(folder, True)
    assert after.content_key != before.content_key
    assert next(after.blocks(9)).identity != next(before.blocks(9)).identity


def test_a_copied_and_touched_folder_of_images_has_the_same_key(tmp_path):
    folder = write_images(tmp_path / "images")
    shutil.copytree(folder, tmp_path / "copy")
    for file in (tmp_path / "copy").iterdir():
        os.utime(file, (1, 1))
    one, two = ImageFolder(folder, True), ImageFolder(tmp_path / "copy", True)
    assert one.content_key == two.content_key
    assert [b.identity for b in one.blocks(2)] == [b.identity for b in two.blocks(2)]
    assert ImageFolder(folder, True, limit=2).content_key != one.content_key


# --- encoders ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_latents_follow_sigma_data_in_one_output_folder(unconditional_pipeline, tmp_path):
    images = write_images(tmp_path / "images")
    deviations = []
    for sigma_data in (1.0, 0.5, 1.0):
        recipe = recipe_for(unconditional_pipeline, tmp_path, "unconditional", sigma_data=sigma_data)
        dataset, shards = prepare(recipe, images)
        deviations.append(dataset.latents.gather(torch.arange(3))["x"].std().item())
    assert deviations[1] == pytest.approx(2 * deviations[0]) and deviations[2] == deviations[0]
    assert shards == 2


@pytest.mark.slow
@pytest.mark.parametrize("component", ["vae", "text_encoder", "model_index.json", "scheduler"])
@pytest.mark.sampled
def test_a_component_replaced_at_the_same_path_is_used(text_pipeline, tmp_path, component):
    shutil.copytree(text_pipeline, tmp_path / "t")
    images, recipe = write_images(tmp_path / "images"), recipe_for(tmp_path / "t", tmp_path)
    _, shards = prepare(recipe, images)
    assert shards == 3  # the images, the captions and the null condition
    assert prepare(recipe, images)[1] == 3
    if component in ("text_encoder", "vae"):
        weights = next((tmp_path / "t" / component).glob("*.safetensors"))
        keep_time(weights, lambda f: f.write_bytes(f.read_bytes()[:-2] + b"\1\1"))
    else:
        file = next((tmp_path / "t").rglob(component if component.endswith("json") else "scheduler_config.json"))
        file.write_text(json.dumps(json.loads(file.read_text()) | {"_note": 1}))
    added = {"text_encoder": 2, "vae": 1}.get(component, 3)
    dataset, shards = prepare(recipe, images)
    assert shards == 3 + added
    teacher = load_teacher(recipe, CPU)
    expected = teacher.condition(dataset.captions)["encoder_hidden_states"]
    actual = dataset.cond.gather(torch.arange(3))["encoder_hidden_states"]
    assert torch.allclose(actual, expected, atol=1e-5)


def changed_config(value):
    """Another value of the same kind for a key of a configuration."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x" if isinstance(value, str) else [value, "x"]  # still a name where a name is expected


@pytest.fixture(scope="module")
def encoder_keys(text_pipeline):
    """encoder_keys(): the keys of conditions and latents; arguments change what they are made from."""
    teachers = {sigma: StableDiffusion.load(str(text_pipeline), CPU, sigma_data=sigma) for sigma in (1.0, 0.5)}

    def make(path=text_pipeline, sigma_data=1.0, **teacher) -> tuple[str, str]:
        found = stored_contents(recipe_for(path, path.parent, **teacher))
        encoder = Encoder(teachers[sigma_data], path.parent, Accelerator(cpu=True), found)
        return encoder.encoder_key("condition"), encoder.encoder_key("encode")

    return make


@pytest.mark.exhaustive
def test_any_changed_key_of_a_configuration_makes_other_embeddings_and_latents(encoder_keys, text_pipeline, tmp_path):
    folder = shutil.copytree(text_pipeline, tmp_path / "t")
    before, changed = encoder_keys(folder), 0
    assert before == encoder_keys(text_pipeline)
    for file in sorted(folder.rglob("*config.json")):
        original = file.read_text()
        stored = json.loads(original)
        for name, value in stored.items():
            file.write_text(json.dumps(stored | {name: changed_config(value)}))
            assert not set(before) & set(encoder_keys(folder)), (file.name, name)
            changed += 1
        file.write_text(original)
    assert changed > 50 and encoder_keys(folder) == before


@pytest.mark.parametrize("change", [{"precision": "bfloat16"}, {"sigma_data": 0.5}], ids=str)
@pytest.mark.slow
def test_precision_and_sigma_data_make_other_embeddings_and_latents(encoder_keys, change):
    assert encoder_keys() == encoder_keys()
    assert not set(encoder_keys()) & set(encoder_keys(**change))


@pytest.mark.slow
def test_another_network_reuses_what_was_encoded(text_pipeline, tmp_path):
    shutil.copytree(text_pipeline, tmp_path / "t")
    recipe = recipe_for(tmp_path / "t", tmp_path)
    _, shards = prepare(recipe)
    weights = tmp_path / "t/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"\1\1")
    assert prepare(recipe)[1] == shards


@pytest.mark.slow
def test_copies_of_a_teacher_share_what_was_encoded(text_pipeline, tmp_path):
    shutil.copytree(text_pipeline, tmp_path / "copy")
    _, shards = prepare(recipe_for(text_pipeline, tmp_path))
    assert prepare(recipe_for(tmp_path / "copy", tmp_path))[1] == shards


@pytest.mark.slow
def test_the_code_of_a_family_counts(text_pipeline, tmp_path):
    """A subclass in this file; its encoders may read any weights."""

    class Louder(StableDiffusion):
        def condition(self, prompts):
            return {name: 2 * value for name, value in super().condition(prompts).items()}

    teachers = [kind.load(str(text_pipeline), CPU) for kind in (StableDiffusion, Louder)]
    encoders = [Encoder(t, tmp_path, Accelerator(cpu=True), t.stored_contents(str(text_pipeline))) for t in teachers]
    for method in ("condition", "encode"):
        assert encoders[0].encoder_key(method) == encoders[0].encoder_key(method) != encoders[1].encoder_key(method)


@pytest.mark.slow
def test_settings_of_a_teacher_count(text_pipeline, tmp_path):
    teacher = StableDiffusion.load(str(text_pipeline), CPU)
    encoder = Encoder(teacher, tmp_path, Accelerator(cpu=True), {})
    found = [encoder.encoder_key("condition")]
    for name, value in {"image_size": (64, 64), "shape": (4, 4, 4), "guidance_input": 3.5}.items():
        setattr(teacher, name, value)
        found.append(encoder.encoder_key("condition"))
    assert len(set(found)) == 4


@pytest.mark.slow
def test_a_teacher_that_was_changed_in_memory_encodes_again(text_pipeline, tmp_path):
    recipe, shards = recipe_for(text_pipeline, tmp_path), []
    plan = plan_of(DataRecipe(prompts="pocket", limit=3), False, True)
    teacher = StableDiffusion.load(str(text_pipeline), CPU)
    for _ in range(2):
        for _ in range(2):
            data.prepare(plan, teacher, recipe, Accelerator(cpu=True))
            shards.append(len(list(recipe.cache.rglob("*.safetensors"))))
        next(teacher.stock.vae.parameters()).data[0] += 1
    assert shards == [2, 2, 4, 4]


# --- teacher pairs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copy_of_a_teacher(text_pipeline, tmp_path_factory) -> Path:
    return shutil.copytree(text_pipeline, tmp_path_factory.mktemp("pairs") / "t")


@pytest.fixture(scope="module")
def pairs(copy_of_a_teacher):
    """pairs(): the key of teacher pairs; arguments change what they are made from."""
    source = str(copy_of_a_teacher)
    teachers = {sigma: StableDiffusion.load(source, CPU, sigma_data=sigma) for sigma in (1.0, 0.5)}

    def make(seed=0, steps=2, captions=("a", "b"), path=copy_of_a_teacher, **teacher) -> str:
        recipe = dataclasses.replace(recipe_for(path, copy_of_a_teacher.parent, **teacher), seed=seed)
        found = stored_contents(recipe)
        return pairs_key(recipe, teachers[recipe.teacher.sigma_data or 1.0], list(captions), steps, found)

    return make


CHANGES = [
    {"seed": 1},
    {"steps": 3},
    {"captions": ("b", "a")},
    {"captions": ("a",)},
    {"guidance": 3.0},
    {"precision": "bfloat16"},
    {"sigma_data": 0.5},
]


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_any_change_of_a_setting_makes_other_pairs(pairs, change):
    assert pairs() == pairs() != pairs(**change)


@pytest.mark.slow
def test_any_changed_file_of_the_teacher_makes_other_pairs(pairs, copy_of_a_teacher, tmp_path):
    before = pairs()
    for file in sorted(f for f in copy_of_a_teacher.rglob("*") if f.is_file()):
        original = file.read_bytes()
        keep_time(
            file, lambda f, start=original: f.write_bytes(start[:-1] + (b" \n" if f.suffix == ".json" else b"\1"))
        )
        assert pairs() != before, file
        file.write_bytes(original)
    shutil.copytree(copy_of_a_teacher, tmp_path / "copy")
    assert pairs(path=tmp_path / "copy") == pairs(num_steps=7) == before


def test_keys_do_not_depend_on_names_of_folders(tmp_path):
    assert key(write_images(tmp_path / "one")) == key(write_images(tmp_path / "two"))
