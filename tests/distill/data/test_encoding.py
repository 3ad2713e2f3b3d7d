"""Encoding: what is kept is what the teacher gives; it is made once, by all, through kills; encoders leave memory."""

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
from safetensors import SafetensorError
from torchvision.transforms.v2 import functional as V

from distill.config.recipe import DTYPES, DataRecipe, Recipe, TeacherRecipe
from distill.data import encoding as encode
from distill.data import shards
from distill.data.batch_random import BatchRandom
from distill.data.dataset import Dataset, Plan, plan, prepare
from distill.data.encoding import Encoder
from distill.data.images import Block, Folder, Row
from distill.data.shards import Table, halved, is_valid, write
from teachers.families import latent
from teachers.families.stable_diffusion import StableDiffusion
from tests.faults.hunt import hunted

CPU = torch.device("cpu")
CAPTIONS = [f"a photo of a coat, {i}" for i in range(11)]


@pytest.fixture
def ready(text_pipeline, tmp_path, monkeypatch):
    """prepare_(captions=..., images=..., precision=...) -> (dataset, teacher, shards filled, text encoders loaded)."""
    monkeypatch.setattr(encode, "SHARD", 4)
    monkeypatch.setattr(encode, "BATCH", 3)
    loads, made = [], []
    load, fill = latent.load_pipeline, shards.write
    monkeypatch.setattr(latent, "load_pipeline", lambda *args, **options: loads.append(args) or load(*args, **options))
    monkeypatch.setattr(shards, "write", lambda file, *rest: made.append(file) or fill(file, *rest))

    def go(captions=CAPTIONS, images=None, precision="float32", name="run"):
        loads.clear(), made.clear()
        source = TeacherRecipe(str(text_pipeline), "stable_diffusion", precision=precision)
        recipe = Recipe(name, source, {"name": "dmd"}, output=str(tmp_path / "runs"))
        teacher = StableDiffusion.load(source.path, CPU, DTYPES[precision])
        dataset = prepare(Plan([] if images else captions, images), teacher, recipe, Accelerator(cpu=True))
        return dataset, teacher, len(made), len(loads)

    return go


def everything(table):
    return table.take(torch.arange(len(table)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_kept_is_what_the_teacher_gives(ready, precision):
    dataset, teacher, made, _ = ready(precision=precision)
    assert made == 4  # three shards and the empty prompt
    wanted = teacher.condition(dataset.captions)["encoder_hidden_states"]
    got = everything(dataset.cond)["encoder_hidden_states"]
    assert got.dtype == torch.float32
    assert torch.allclose(got, wanted, atol=1e-5 if precision == "float32" else 3e-2)
    blank = teacher.null_condition({"encoder_hidden_states": wanted})["encoder_hidden_states"]
    assert torch.allclose(blank, teacher.encode_null_condition()["encoder_hidden_states"].expand_as(blank), atol=1e-6)


def test_a_second_run_reads_and_does_not_load_the_text_encoder(ready):
    first, _, _, loaded = ready(name="one")
    assert loaded == 1
    second, teacher, made, loaded = ready(name="two")
    assert (made, loaded) == (0, 0)
    assert all(torch.equal(everything(second.cond)[k], v) for k, v in everything(first.cond).items())
    assert teacher.stock.text_encoder is None and teacher.stock.tokenizer is None
    teacher.null_condition(everything(second.cond))  # and guidance does not need it either
    assert not teacher.text_encoders_loaded


def test_prompts_that_are_added_are_all_that_is_encoded(ready):
    ready()
    assert ready([*CAPTIONS, "a bag"])[2] == 1  # the last, which was not full
    assert ready([*CAPTIONS, "a bag", "a shoe"])[2] == 1


@pytest.mark.parametrize("change", ["precision", "weights"])
def test_another_encoder_makes_other_shards(ready, change, text_pipeline, tmp_path, monkeypatch):
    before = everything(ready()[0].cond)["encoder_hidden_states"]
    if change == "weights":
        monkeypatch.setattr(encode, "components_hash", lambda path, parts: "another")
        assert ready()[2] == 4
    else:
        after = ready(precision="bfloat16")
        assert after[2] == 4 and not torch.equal(everything(after[0].cond)["encoder_hidden_states"], before)


def files(tmp_path):
    return sorted((tmp_path / "runs" / ".cache").rglob("*.safetensors"))


def test_a_bit_that_a_disk_has_turned_is_found_and_the_shard_made_again(ready, tmp_path):
    before = everything(ready()[0].cond)
    largest = max(files(tmp_path), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[-5] ^= 1
    largest.write_bytes(content)
    cut = min(files(tmp_path), key=lambda file: file.stat().st_size)
    cut.write_bytes(cut.read_bytes()[:-1])
    dataset, _, made, _ = ready()
    assert made == 2
    assert all(torch.equal(everything(dataset.cond)[key], value) for key, value in before.items())


def test_kills_lose_one_shard_at_most(text_pipeline, tmp_path, monkeypatch):
    """SIGKILL at random moments, in writes too: each life goes on from all but the shard that the last was making."""
    monkeypatch.setattr(encode, "SHARD", 2)
    teacher, engine, cache = StableDiffusion.load(str(text_pipeline), CPU), Accelerator(cpu=True), tmp_path / "cache"
    teacher.text_pipeline()
    captions, make = [f"a bag, {i}" for i in range(60)], Encoder._conditions

    def work() -> None:
        encode.Encoder._conditions = lambda self, words: (time.sleep(0.02), make(self, words))[1]
        Encoder(teacher, cache, engine, "t").words(captions)

    hunted(work, cache)
    reader = Encoder(teacher, cache, engine, "t")
    table = reader.words(captions)
    assert reader.made == 0
    wanted = teacher.condition(captions)["encoder_hidden_states"]
    assert torch.allclose(everything(table)["encoder_hidden_states"], wanted, atol=1e-5)


def test_processes_share_the_shards(text_pipeline, tmp_path, monkeypatch):
    """Two ranks of which the second arrives late, over prompts and over images."""
    monkeypatch.setattr(encode, "SHARD", 2)
    barrier, rank = threading.Barrier(2, timeout=60), threading.local()
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(Accelerator, "process_index", property(lambda self: rank.number))
    monkeypatch.setattr(Accelerator, "is_main_process", property(lambda self: rank.number == 0))
    monkeypatch.setattr(Accelerator, "wait_for_everyone", lambda self: barrier.wait())
    said = [0.0, 0.0]

    def reduce(self, value, how):
        said[rank.number] = value.item()
        barrier.wait()
        total = torch.tensor([sum(said)])
        barrier.wait()
        return total

    monkeypatch.setattr(Accelerator, "reduce", reduce)
    folder = pictures(tmp_path / "images", 7)
    found, lock = {}, threading.Lock()
    engine = Accelerator(cpu=True)

    def process(number):
        rank.number = number
        time.sleep(0.3 * number)
        teacher = StableDiffusion.load(str(text_pipeline), CPU)
        encoder = Encoder(teacher, tmp_path / "cache", engine, "t")
        captions, latents = encoder.latents(Folder(folder, True))
        table = encoder.words(captions)
        with lock:
            found[number] = (
                encoder.made,
                captions,
                everything(latents)["x"],
                everything(table)["encoder_hidden_states"],
            )

    threads = [threading.Thread(target=process, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (
        found[0][0] == 2 + 1 + 2 and found[1][0] == 2 + 2
    )  # of four blocks of images, the empty prompt, four of words
    assert found[0][1] == found[1][1] == [f"number {i}" for i in range(7)]
    assert all(torch.equal(one, two) for one, two in zip(found[0][2:], found[1][2:], strict=True))


def pictures(folder, count):
    folder.mkdir()
    for i in range(count):
        Image.effect_noise((40 + i, 32), 20 + 20 * i).convert("RGB").save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"number {i}")
    return folder


def test_latents_are_those_of_each_image_alone(ready, tmp_path):
    images = Folder(pictures(tmp_path / "images", 6), True)
    dataset, teacher, _, _ = ready(images=images)
    assert dataset.captions == [f"number {i}" for i in range(6)]
    for i, row in enumerate(images.rows):
        pixels = V.center_crop(V.resize(V.pil_to_tensor(row.picture()), [32]), [32, 32]).float() / 127.5 - 1
        with torch.no_grad():
            wanted = teacher.encode(pixels[None])
        assert torch.allclose(dataset.latents.take(torch.tensor([i]))["x"], wanted, atol=1e-4)


class Watched(Folder):
    """A folder that counts how often it is read, and of which one row is no image."""

    reads = 0

    def blocks(self, size):
        self.reads += 1
        self.rows[2] = Row("the third", self.rows[2].caption, b"no image")
        self.rows[4] = Row("the fifth", None, self.rows[4].image)
        for first in range(0, len(self.rows), size):
            yield Block(str(first), partial(self.rows.__getitem__, slice(first, first + size)))


def test_images_that_cannot_be_read_are_left_out_counted_and_named(ready, tmp_path, capsys):
    images = Watched(pictures(tmp_path / "images", 6), True)
    dataset, *_ = ready(images=images)
    assert dataset.captions == ["number 0", "number 1", "number 3", "number 5"]
    assert len(dataset.latents) == 4 == len(dataset.prompt)
    assert (
        "2 images cannot be read or have no caption, and are left out: the third, the fifth" in capsys.readouterr().out
    )
    ready(images=images)
    assert images.reads == 1  # the second time the ledger tells


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_is_encoded_as_far_as_asked_and_later_the_rest(ready, tmp_path, streaming):
    pixels = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 20, 90)).save(pixels, "PNG")
    rows = {"image": [{"bytes": pixels.getvalue(), "path": None}] * 11, "text": CAPTIONS}
    parquet.write_table(pa.table(rows), tmp_path / "a.parquet")
    for limit, shards_made in ((6, 2), (6, 0), (0, 2), (0, 0)):  # of 4: 6 are one and a half, 11 two and three quarters
        recipe = DataRecipe(images=str(tmp_path / "a.parquet"), streaming=streaming, limit=limit)
        dataset, _, made, _ = ready(images=plan(recipe, True, True).images)
        assert dataset.captions == CAPTIONS[: limit or None] and len(dataset.latents) == (limit or 11)
        images_made = made - (0 if not made else 3 if limit else 2)  # shards of words: the empty prompt, one and a half
        assert images_made == shards_made


def test_a_data_set_without_any_image_is_refused(ready, tmp_path):
    images = Watched(pictures(tmp_path / "images", 6), True)
    images.blocks = lambda size: [Block("0", lambda: [Row("a", "b", b"no image")])]
    with pytest.raises(ValueError, match="holds no image with a caption that can be read"):
        ready(images=images)


def test_a_large_table_reads_rows_from_its_shards(monkeypatch):
    parts = [{"a": torch.randn(n, 3), "b": torch.arange(n)} for n in (4, 1, 6)]
    rows = torch.tensor([10, 0, 4, 3, 4, 5])
    small = Table(parts, CPU)
    monkeypatch.setattr(shards, "RESIDENT", 0)
    large = Table(parts, CPU)
    assert large._whole is None and len(large) == len(small) == 11
    assert all(torch.equal(small.take(rows)[key], large.take(rows)[key]) for key in ("a", "b"))
    assert torch.equal(large.take(rows)["a"], torch.cat([part["a"] for part in parts])[rows])


def test_rows_in_files_are_read_while_the_batch_before_trains(monkeypatch):
    monkeypatch.setattr(shards, "RESIDENT", 0)
    data = Dataset(["a"], Table([{"x": torch.randn(9, 2)}], CPU), torch.arange(9))
    taken = []

    class Slow(Table):
        def take(self, rows):
            taken.append(rows)
            return super().take(rows)

    data.cond.__class__ = Slow
    batches = data.micro_batches(BatchRandom((0, step), 0, 4, 4, CPU) for step in range(3))
    first = next(batches)
    for _ in range(500):  # the second is read without being asked for, the third is not
        if len(taken) == 2:
            break
        time.sleep(0.01)
    assert len(taken) == 2
    for step, batch in enumerate([first, *batches]):
        assert torch.equal(batch.cond["x"], data.batch(BatchRandom((0, step), 0, 4, 4, CPU)).cond["x"])


def test_what_cannot_be_read_ahead_ends_the_run_where_it_is_wanted(monkeypatch):
    monkeypatch.setattr(shards, "RESIDENT", 0)
    data = Dataset(["a"], Table([{"x": torch.randn(3, 2)}], CPU), torch.tensor([5]))  # a row that is not there
    batches = data.micro_batches([BatchRandom((0,), 0, 4, 4, CPU)])
    with pytest.raises(IndexError):
        next(batches)


def test_half_precision_is_kept_as_such_where_nothing_is_lost():
    exact, other = torch.tensor([1.5, 1024.0]), torch.tensor([1.5, 832.3])
    assert halved(exact, torch.bfloat16).dtype == torch.bfloat16
    assert halved(other, torch.bfloat16).dtype == torch.float32
    assert halved(torch.arange(3), torch.bfloat16).dtype == torch.int64


def test_a_shard_of_other_inputs_or_too_few_rows_does_not_count(tmp_path):
    file = tmp_path / "a.safetensors"
    write(file, "key", {"x": torch.ones(3, dtype=torch.bfloat16)})
    assert is_valid(file, "key", 3) and not is_valid(file, "other") and not is_valid(file, "key", 4)
    assert not is_valid(tmp_path / "b.safetensors", "key")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_full_disk_is_one_sentence_and_what_a_killed_life_left_goes_with_the_next(tmp_path, monkeypatch):
    file = tmp_path / "a.safetensors"
    (tmp_path / ".a.safetensors.999999.tmp").write_bytes(b"half a shard")
    write(file, "key", {"x": torch.ones(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]

    def full(*arguments, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(shards, "save_file", full)
    with pytest.raises(ValueError, match=r"cannot be written \(Error while serializing: .*No space left"):
        write(file, "another", {"x": torch.ones(3)})
    write(file, "key", {"x": torch.ones(3)})  # another run made it meanwhile


def test_the_whole_way_from_a_plan_with_images_but_a_method_of_prompts(tmp_path):
    """A method that learns from prompts takes the captions and leaves the images unread."""
    found = plan(DataRecipe(images=str(pictures(tmp_path / "images", 3))), False, True)
    assert found.images is None and found.captions == ["number 0", "number 1", "number 2"]
