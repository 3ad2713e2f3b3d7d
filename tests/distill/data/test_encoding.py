"""Encoding of prompts and images: contents of the shards, reuse, interruptions, several processes, tables."""

import io
import threading
import time
from functools import partial

import pyarrow as pa
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from pyarrow import parquet
from torchvision.transforms.v2 import functional as V

from distill.config.recipe import Recipe
from distill.config.sections import DTYPES, DataRecipe, TeacherRecipe
from distill.data import encoding, shards
from distill.data.conditions import cut_prompts
from distill.data.dataset import prepare
from distill.data.encoding import Encoder
from distill.data.images import Block, ImageFolder, Row
from distill.data.plan import Plan, plan
from teachers.families import latent
from teachers.families.stable_diffusion import StableDiffusion
from teachers.loading.registry import load_teacher
from teachers.support.images import read_for_training
from tests.faults.repeated_kills import run_with_kills

CPU = torch.device("cpu")
CAPTIONS = [f"a photo of a coat, {i}" for i in range(11)]


@pytest.fixture
def ready(text_pipeline, tmp_path, monkeypatch):
    """run(captions=..., images=..., precision=...) -> (dataset, teacher, shards written, text encoders loaded)."""
    monkeypatch.setattr(encoding, "SHARD", 4)
    monkeypatch.setattr(encoding, "BATCH", 3)
    loads, written = [], []
    load_pipeline, write_shard = latent.load_pipeline, shards.write
    monkeypatch.setattr(
        latent, "load_pipeline", lambda *args, **options: loads.append(args) or load_pipeline(*args, **options)
    )
    monkeypatch.setattr(shards, "write", lambda file, *rest: written.append(file) or write_shard(file, *rest))

    def run(captions=CAPTIONS, images=None, precision="float32", name="run"):
        loads.clear(), written.clear()
        source = TeacherRecipe(str(text_pipeline), "stable_diffusion", precision=precision)
        recipe = Recipe(name, source, {"name": "dmd"}, output=str(tmp_path / "runs"))
        teacher = StableDiffusion.load(source.path, CPU, DTYPES[precision])
        dataset = prepare(Plan([] if images else captions, images), teacher, recipe, Accelerator(cpu=True))
        return dataset, teacher, len(written), len(loads)

    run.loads = loads
    return run


def all_rows(table):
    return table.gather(torch.arange(len(table)))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stored_conditions_are_those_of_the_teacher(ready, precision):
    dataset, teacher, written, _ = ready(precision=precision)
    assert written == 4  # three shards and the empty prompt
    expected = teacher.condition(dataset.captions)["encoder_hidden_states"]
    actual = all_rows(dataset.cond)["encoder_hidden_states"]
    assert actual.dtype == torch.float32
    assert torch.allclose(actual, expected, atol=1e-5 if precision == "float32" else 3e-2)
    null = teacher.null_condition({"encoder_hidden_states": expected})["encoder_hidden_states"]
    assert torch.allclose(null, teacher.encode_null_condition()["encoder_hidden_states"].expand_as(null), atol=1e-6)


@pytest.mark.slow
def test_prompts_that_the_text_encoder_cuts_are_counted_once(ready, capsys):
    long = "a photo of a coat, " * 40
    ready(captions=[*CAPTIONS[:6], long, f"{long}bag"])
    out = capsys.readouterr().out
    assert out.startswith("warning: 2 of 8 prompts are longer than the text encoder's ") and out.count("\n") == 1
    assert ' tokens and are cut, such as "a photo of a coat, ' in out
    ready(captions=[*CAPTIONS[:6], long, f"{long}bag"], name="again")
    assert not capsys.readouterr().out


@pytest.mark.slow
def test_families_whose_limit_is_unknown_count_no_prompts(unconditional_pipeline):
    teacher = load_teacher(unconditional_pipeline)
    assert teacher.prompt_limit() is None and cut_prompts(teacher, ["long " * 999]) is None


@pytest.mark.slow
def test_second_run_does_not_load_the_text_encoder(ready):
    first, _, _, loaded = ready(name="one")
    assert loaded == 1
    second, teacher, written, loaded = ready(name="two")
    assert (written, loaded) == (0, 0)
    assert all(torch.equal(all_rows(second.cond)[k], v) for k, v in all_rows(first.cond).items())
    assert teacher.stock.text_encoder is None and teacher.stock.tokenizer is None
    teacher.null_condition(all_rows(second.cond))  # guidance does not need it either
    assert not ready.loads


@pytest.mark.slow
def test_only_added_prompts_are_encoded(ready):
    ready()
    assert ready([*CAPTIONS, "a bag"])[2] == 1  # the last shard, which was incomplete
    assert ready([*CAPTIONS, "a bag", "a shoe"])[2] == 1


@pytest.mark.slow
def test_another_precision_writes_other_shards(ready):
    before = all_rows(ready()[0].cond)["encoder_hidden_states"]
    after = ready(precision="bfloat16")
    assert after[2] == 4 and not torch.equal(all_rows(after[0].cond)["encoder_hidden_states"], before)


def files(tmp_path):
    return sorted((tmp_path / "runs" / ".cache").rglob("*.safetensors"))


@pytest.mark.slow
def test_damaged_shards_are_detected_and_written_again(ready, tmp_path):
    before = all_rows(ready()[0].cond)
    largest = max(files(tmp_path), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[-5] ^= 1
    largest.write_bytes(content)
    truncated = min(files(tmp_path), key=lambda file: file.stat().st_size)
    truncated.write_bytes(truncated.read_bytes()[:-1])
    dataset, _, written, _ = ready()
    assert written == 2
    assert all(torch.equal(all_rows(dataset.cond)[key], value) for key, value in before.items())


@pytest.mark.slow
def test_kills_lose_at_most_one_shard(text_pipeline, tmp_path, monkeypatch):
    """SIGKILL at random moments, also while writing: each process continues from the finished shards."""
    monkeypatch.setattr(encoding, "SHARD", 2)
    accelerator, cache = Accelerator(cpu=True), tmp_path / "cache"
    teacher = StableDiffusion.load(str(text_pipeline), CPU)
    teacher.text_pipeline()
    captions, condition = [f"a bag, {i}" for i in range(24)], StableDiffusion.condition

    def work() -> None:
        StableDiffusion.condition = lambda self, prompts: (time.sleep(0.02), condition(self, prompts))[1]
        Encoder(teacher, cache, accelerator, {"name": "t"}).encode_captions(captions)

    run_with_kills(work, cache)
    reader = Encoder(teacher, cache, accelerator, {"name": "t"})
    table = reader.encode_captions(captions)
    assert reader.written == 0
    expected = teacher.condition(captions)["encoder_hidden_states"]
    assert torch.allclose(all_rows(table)["encoder_hidden_states"], expected, atol=1e-5)


@pytest.mark.slow
def test_processes_divide_the_shards(text_pipeline, tmp_path, monkeypatch):
    """Two processes, the second of which starts late, with prompts and with images."""
    monkeypatch.setattr(encoding, "SHARD", 2)
    barrier, rank = threading.Barrier(2, timeout=60), threading.local()
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(Accelerator, "process_index", property(lambda self: rank.number))
    monkeypatch.setattr(Accelerator, "is_main_process", property(lambda self: rank.number == 0))
    monkeypatch.setattr(Accelerator, "wait_for_everyone", lambda self: barrier.wait())
    values = [0.0, 0.0]

    def reduce(self, value, how):
        values[rank.number] = value.item()
        barrier.wait()
        total = torch.tensor([sum(values)])
        barrier.wait()
        return total

    monkeypatch.setattr(Accelerator, "reduce", reduce)
    folder = write_images(tmp_path / "images", 7)
    results, lock = {}, threading.Lock()
    accelerator = Accelerator(cpu=True)

    def process(number):
        rank.number = number
        time.sleep(0.3 * number)
        teacher = StableDiffusion.load(str(text_pipeline), CPU)
        encoder = Encoder(teacher, tmp_path / "cache", accelerator, {"name": "t"})
        captions, latents = encoder.encode_images(ImageFolder(folder, True))
        table = encoder.encode_captions(captions)
        with lock:
            results[number] = (
                encoder.written,
                captions,
                all_rows(latents)["x"],
                all_rows(table)["encoder_hidden_states"],
            )

    threads = [threading.Thread(target=process, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Four shards of images, the empty prompt and four shards of captions.
    assert results[0][0] == 2 + 1 + 2 and results[1][0] == 2 + 2
    assert results[0][1] == results[1][1] == [f"number {i}" for i in range(7)]
    assert all(torch.equal(one, two) for one, two in zip(results[0][2:], results[1][2:], strict=True))


def write_images(folder, count):
    folder.mkdir()
    for i in range(count):
        Image.effect_noise((40 + i, 32), 20 + 20 * i).convert("RGB").save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"number {i}")
    return folder


@pytest.mark.slow
def test_latents_are_those_of_single_images(ready, tmp_path):
    images = ImageFolder(write_images(tmp_path / "images", 6), True)
    dataset, teacher, _, _ = ready(images=images)
    assert dataset.captions == [f"number {i}" for i in range(6)]
    for i, row in enumerate(images.rows):
        pixels = (
            V.center_crop(
                V.resize(V.pil_to_tensor(read_for_training(row.source, row.name).image), [32]), [32, 32]
            ).float()
            / 127.5
            - 1
        )
        with torch.no_grad():
            expected = teacher.encode(pixels[None])
        assert torch.allclose(dataset.latents.gather(torch.tensor([i]))["x"], expected, atol=1e-4)


class CountingFolder(ImageFolder):
    """Counts how often the folder is read. One row is not an image, and one has no caption."""

    reads = 0

    def blocks(self, size):
        self.reads += 1
        self.rows[2] = Row("the third", self.rows[2].caption, b"not an image")
        self.rows[4] = Row("the fifth", None, self.rows[4].source)
        for first in range(0, len(self.rows), size):
            yield Block(str(first), partial(self.rows.__getitem__, slice(first, first + size)))


@pytest.mark.slow
def test_unreadable_images_are_skipped_with_a_message(ready, tmp_path, capsys):
    images = CountingFolder(write_images(tmp_path / "images", 6), True)
    dataset, *_ = ready(images=images)
    assert dataset.captions == ["number 0", "number 1", "number 3", "number 5"]
    assert len(dataset.latents) == 4 == len(dataset.prompt)
    message = (
        "2 images are skipped because they cannot be used or have no caption: the third cannot be read as an image "
    )
    assert message in capsys.readouterr().out
    ready(images=images)
    assert images.reads == 1  # the second run uses the index


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_raising_the_limit_encodes_only_the_new_rows(ready, tmp_path, streaming):
    pixels = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 20, 90)).save(pixels, "PNG")
    rows = {"image": [{"bytes": pixels.getvalue(), "path": None}] * 11, "text": CAPTIONS}
    parquet.write_table(pa.table(rows), tmp_path / "a.parquet")
    for limit, image_shards in ((6, 2), (6, 0), (0, 2), (0, 0)):  # of 4 rows each
        recipe = DataRecipe(images=str(tmp_path / "a.parquet"), streaming=streaming, limit=limit)
        dataset, _, written, _ = ready(images=plan(recipe, True, True).images)
        assert dataset.captions == CAPTIONS[: limit or None] and len(dataset.latents) == (limit or 11)
        caption_shards = 0 if not written else 3 if limit else 2  # with the empty prompt at first
        assert written - caption_shards == image_shards


@pytest.mark.slow
def test_dataset_without_readable_images_is_rejected(ready, tmp_path):
    images = CountingFolder(write_images(tmp_path / "images", 6), True)
    images.blocks = lambda size: [Block("0", lambda: [Row("a", "b", b"not an image")])]
    with pytest.raises(ValueError, match="must have at least one readable image with a caption"):
        ready(images=images)


@pytest.mark.slow
def test_transparent_images_are_reported_also_from_the_cache(ready, tmp_path, capsys):
    folder = write_images(tmp_path / "images", 2)
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(folder / "2.png")
    (folder / "2.txt").write_text("a cut-out", encoding="utf-8")
    for _ in range(2):
        dataset, teacher, *_ = ready(images=ImageFolder(folder, True))
        assert "1 image has transparency, which is composited on white: " in capsys.readouterr().out
    white = teacher.encode(torch.ones(1, 3, 32, 32))
    assert torch.allclose(dataset.latents.gather(torch.tensor([2]))["x"], white, atol=1e-5)


def overflowing(teacher, limit=0.5):
    """Make the teacher's autoencoder overflow for images that are brighter than `limit`, in half precision."""
    vae, encode = teacher.stock.vae, teacher.stock.vae.encode

    def half(images):
        code = encode(images)
        code.latent_dist.mean[(images.float().mean((1, 2, 3)) > limit) & (images.dtype != torch.float32)] = torch.nan
        return code

    vae.encode = half
    return teacher


@pytest.mark.slow
def test_rows_that_overflow_in_half_precision_are_computed_in_float32(text_pipeline, logged):
    teacher = overflowing(StableDiffusion.load(str(text_pipeline), CPU, torch.bfloat16))
    teacher.stock.vae.to(torch.bfloat16)  # it is loaded in float32; other half precisions are not
    images = torch.stack([torch.full((3, 32, 32), value) for value in (-0.5, 0.9, 0.1, 0.8)])
    latents = teacher.encode(images)
    assert latents.isfinite().all() and teacher.stock.vae.dtype == torch.bfloat16
    assert torch.equal(latents[[0, 2]], teacher.encode(images)[[0, 2]])  # the others are as before
    exact = StableDiffusion.load(str(text_pipeline), CPU, torch.bfloat16)
    exact.stock.vae.to(torch.bfloat16).float()
    assert torch.allclose(latents[[1, 3]], exact.encode(images)[[1, 3]], atol=1e-5)
    assert logged == ["the autoencoder overflows in bfloat16; the images concerned are computed in float32"]


@pytest.mark.slow
def test_latent_that_is_not_finite_is_an_error_with_the_image(ready, tmp_path, monkeypatch):
    encode = StableDiffusion.encode

    def broken(self, images):
        latents = encode(self, images)
        latents[-1, 0, 0, 0] = torch.inf
        return latents

    monkeypatch.setattr(StableDiffusion, "encode", broken)
    images = ImageFolder(write_images(tmp_path / "images", 6), True)
    with pytest.raises(ValueError, match=r"the latent of the image .*2\.png \(of 1 such images\) has NaN or infinite"):
        ready(images=images)
    assert not any((tmp_path / "runs").rglob("*.safetensors"))


@pytest.mark.slow
def test_embedding_that_is_not_finite_is_an_error_with_the_caption(ready, monkeypatch):
    condition = StableDiffusion.condition

    def broken(self, prompts):
        rows = dict(condition(self, prompts))
        rows["encoder_hidden_states"][[prompt.endswith(" 5") for prompt in prompts]] = torch.nan
        return rows

    monkeypatch.setattr(StableDiffusion, "condition", broken)
    with pytest.raises(
        ValueError, match=r"NaN or infinite values for the caption 'a photo of a coat, 5' \(of 1\); set"
    ):
        ready()


@pytest.mark.slow
def test_null_condition_that_is_not_finite_is_an_error(ready, monkeypatch):
    unguided = StableDiffusion.encode_unguided

    def broken(self):
        return {name: value * torch.nan for name, value in unguided(self).items()}

    monkeypatch.setattr(StableDiffusion, "encode_unguided", broken)
    with pytest.raises(ValueError, match="NaN or infinite values for the empty or the negative prompt; set teacher"):
        ready()


@pytest.mark.slow
def test_images_with_another_number_of_channels_than_the_network_are_an_error(ready, tmp_path, monkeypatch):
    encode = StableDiffusion.encode
    monkeypatch.setattr(StableDiffusion, "encode", lambda self, images: encode(self, images)[:, :3])
    with pytest.raises(ValueError, match=r"encodes each image as \(3, 8, 8\), but its network takes \(4, 8, 8\)"):
        ready(images=ImageFolder(write_images(tmp_path / "images", 2), True))
