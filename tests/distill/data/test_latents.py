"""Ready-made latents: files, captions, checks, and a run that learns from them."""

import json
import warnings
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import save_file

from distill.config.recipe import Recipe
from distill.config.sections import DataRecipe, TeacherRecipe, TrainRecipe
from distill.data.dataset import prepare
from distill.data.plan import plan
from distill.data.stored_latents import StoredLatents
from distill.encode import encode
from distill.train import train
from distill.training.run_folder import stored_contents
from distill.training.setup import load_teacher

CPU = torch.device("cpu")


def write(file, count=3, captions=True, first=0, **more):
    latents = torch.arange(count * 8.0).reshape(count, 2, 2, 2) + first
    names = [f"number {first + i}" for i in range(count)]
    metadata = {"captions": json.dumps(names)} if captions else None
    save_file({"latents": latents} | more, file, metadata=metadata)
    return latents


def teacher(shape=(2, 2, 2), sigma_data=1.0):
    return SimpleNamespace(shape=shape, denoiser=SimpleNamespace(path=SimpleNamespace(sigma_data=sigma_data)))


def rows(table):
    return table.gather(torch.arange(len(table)))["x"]


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_files_are_read_in_the_order_of_their_names(tmp_path, sigma_data):
    second, first = write(tmp_path / "b.safetensors", 3, first=2), write(tmp_path / "a.safetensors", 2)
    found = StoredLatents(tmp_path, True)
    assert found.captions == [f"number {i}" for i in range(5)]
    table = found.table(teacher(sigma_data=sigma_data), {}, CPU)
    assert torch.equal(rows(table), torch.cat([first, second]) / sigma_data)
    limited = StoredLatents(tmp_path, True, limit=3)
    assert len(limited.captions) == 3 == len(limited.table(teacher(), {}, CPU))
    assert limited.content_key != found.content_key


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        (".txt", "a bag\na\u2028coat\n\n"),
        (".txt", "\ufeffa bag\r\na\u2028coat\r\n"),
        (".txt", "a bag\na\u2028coat"),
        (".jsonl", '{"text": "a bag"}\n{"caption": "a\u2028coat"}\n'),
    ],
)
def test_captions_beside_a_file(tmp_path, ending, text):
    write(tmp_path / "a.safetensors", 2, captions=False)
    (tmp_path / f"a{ending}").write_bytes(text.encode())
    assert StoredLatents(tmp_path / "a.safetensors", True).captions == ["a bag", "a\u2028coat"]
    assert StoredLatents(tmp_path / "a.safetensors", False).captions == ["", ""]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "a .safetensors file or a folder of them"),
        (lambda folder: (folder / "a.safetensors").write_bytes(b"x" * 40), r"a\.safetensors cannot be read as"),
        (lambda folder: save_file({"x": torch.ones(2, 2)}, folder / "a.safetensors"), 'the tensor "latents", got x'),
        (
            lambda folder: save_file({"latents": torch.ones(2, 2).long()}, folder / "a.safetensors"),
            "must be of shape .* and of a type of F64, F32, F16, BF16, got I64",
        ),
        (
            lambda folder: save_file(
                {"latents": torch.ones(2, 2).to(torch.float8_e4m3fn)}, folder / "a.safetensors", metadata={}
            ),
            r"in .*a\.safetensors must be .* got F8_E4M3",
        ),
        (lambda folder: write(folder / "a.safetensors", captions=False), "has no captions; add them to its metadata"),
        (
            lambda folder: (
                write(folder / "a.safetensors", captions=False),
                (folder / "a.txt").write_text("one\ntwo", encoding="utf-8"),
            ),
            r"a\.txt must have a caption for each of the 3 latents, got 2",
        ),
        (
            lambda folder: save_file(
                {"latents": torch.ones(1, 2)}, folder / "a.safetensors", metadata={"captions": "[1"}
            ),
            "must be a JSON list",
        ),
        (
            lambda folder: save_file(
                {"latents": torch.ones(1, 2)}, folder / "a.safetensors", metadata={"captions": "[null]"}
            ),
            "caption 0 of .* is missing",
        ),
    ],
)
def test_files_that_cannot_be_used_are_errors(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        plan(DataRecipe(latents=str(tmp_path)), True, True)


def test_an_empty_caption_at_the_end_counts(tmp_path):
    write(tmp_path / "a.SAFETENSORS", 3, captions=False)
    (tmp_path / "a.txt").write_text("a bag\na coat\n\n", encoding="utf-8")
    assert StoredLatents(tmp_path / "a.SAFETENSORS", True).captions == ["a bag", "a coat", ""]


def test_hidden_files_are_not_read(tmp_path):
    """macOS writes "._NAME" beside each NAME to disks of other systems."""
    write(tmp_path / "a.safetensors", 2)
    (tmp_path / "._a.safetensors").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    assert len(StoredLatents(tmp_path, True).captions) == 2


@pytest.mark.parametrize(("scale", "sigma_data", "factor"), [(5.5, 1.0, "5.5"), (0.0, 1.0, "0"), (0.5, 2.0, "0.25")])
def test_latents_before_the_autoencoder_s_scaling_are_noticed(tmp_path, scale, sigma_data, factor):
    latents = torch.randn(64, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    save_file({"latents": latents / latents.square().mean().sqrt() * scale}, tmp_path / "a.safetensors")
    with pytest.warns(UserWarning, match=rf"^data\.latents have {factor} times the standard deviation"):
        StoredLatents(tmp_path, False).table(teacher(sigma_data=sigma_data), {}, CPU)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_latents_of_the_usual_scale_are_not_noted(tmp_path, sigma_data):
    latents = torch.randn(64, 2, 2, 2, generator=torch.Generator().manual_seed(0)) * sigma_data
    save_file({"latents": latents}, tmp_path / "a.safetensors")
    StoredLatents(tmp_path, False).table(teacher(sigma_data=sigma_data), {}, CPU)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"gone does not exist"):
        plan(DataRecipe(latents=str(tmp_path / "gone")), True, True)


def test_latents_of_another_shape_or_with_nan_are_errors(tmp_path):
    latents = write(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"must have the shape \(N, 2, 2\) of this teacher, got \(3, 2, 2, 2\)"):
        StoredLatents(tmp_path, True).table(teacher((2, 2)), {}, CPU)
    latents[1, 0, 0, 0] = torch.nan
    save_file({"latents": latents}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="must be finite, got NaN or infinite values in row 1"):
        StoredLatents(tmp_path, False).table(teacher(), {}, CPU)


def test_latents_and_images_exclude_each_other():
    with pytest.raises(ValueError, match=r"latents must be null with data\.images, got 'a'"):
        DataRecipe(latents="a", images="b")


@pytest.mark.slow
def test_encoded_files_are_the_data_of_a_run(text_pipeline, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.effect_noise((40, 32), 20 + 20 * number).convert("RGB").save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"number {number}", encoding="utf-8")
    source = TeacherRecipe(str(text_pipeline), "stable_diffusion", sigma_data=0.5)
    images = DataRecipe(images=str(folder))
    recipe = Recipe("x", source, {"name": "scm"}, output=str(tmp_path / "runs"), data=images)
    (file,) = encode(recipe, tmp_path / "latents")
    teacher = load_teacher(recipe, CPU)
    accelerator = Accelerator(cpu=True)
    expected = prepare(plan(images, True, True), teacher, recipe, accelerator)
    found = prepare(plan(DataRecipe(latents=str(file)), True, True), teacher, recipe, accelerator)
    assert found.captions == expected.captions == ["number 0", "number 1", "number 2"]
    assert torch.allclose(rows(found.latents), rows(expected.latents), atol=1e-6)
    stored = StoredLatents(file, True)
    contents = stored_contents(recipe)
    with warnings.catch_warnings(action="error"):
        stored.table(teacher, contents, CPU)
    other = {name: "0" * 64 if name.startswith("vae/") else value for name, value in contents.items()}
    with pytest.warns(UserWarning, match="encoded by an autoencoder with other weights than the teacher's"):
        stored.table(teacher, other, CPU)
    with pytest.raises(ValueError, match=r"OUT must be a folder without \.safetensors files, got .*00000"):
        encode(recipe, tmp_path / "latents")


@pytest.mark.slow
def test_a_run_learns_from_stored_latents(tiny_media, tmp_path):
    """sCM on clips without an autoencoder's encoder, and DMD on their captions alone."""
    family, folder, size = tiny_media("Wan 2.1")
    latents = torch.randn(4, 16, 3, 2, 4, generator=torch.Generator().manual_seed(0)).half()
    names = json.dumps([f"number {i}" for i in range(4)])
    save_file({"latents": latents}, tmp_path / "a.safetensors", metadata={"captions": names})
    settings = {"batch_size": 2, "evaluate_every": 0, "evaluate_samples": 2, "evaluate_teacher_steps": 1}
    run = Recipe(
        "stored",
        TeacherRecipe(str(folder), family, 2.0, num_steps=2, size=size),
        {"name": "scm"},
        output=str(tmp_path / "runs"),
        data=DataRecipe(latents=str(tmp_path / "a.safetensors")),
        train=TrainRecipe(steps=1, **settings),
    )
    pipeline = train(run)
    assert (pipeline / "training_prompts.txt").read_text() == "number 0\nnumber 1\nnumber 2\nnumber 3\n"
    assert plan(run.data, False, True).captions == [f"number {i}" for i in range(4)]
