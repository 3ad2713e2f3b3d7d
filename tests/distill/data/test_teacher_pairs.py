"""Teacher pairs: their contents, their storage, and continuing after interruptions."""

import shutil
import threading
import time

import pytest
import torch
from accelerate import Accelerator

from distill.config.recipe import load
from distill.data import dataset as data
from distill.data import shards, teacher_pairs
from distill.data.batch_random import BatchRandom
from distill.data.plan import plan as plan_of
from distill.data.shards import Table
from distill.data.teacher_pairs import make
from distill.pairs import make_pairs
from teachers.core.sampling import teacher_endpoint
from teachers.families.stable_diffusion import StableDiffusion
from teachers.support.checksums import load_tensors
from tests.faults.repeated_kills import run_with_kills

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture
def recipe(tmp_path, text_pipeline):
    (tmp_path / "prompts.txt").write_text("a coat\na bag\na shoe\n")
    (tmp_path / "r.yaml").write_text(
        f"name: p\noutput: {tmp_path}\n"
        f"teacher: {{family: stable_diffusion, path: {text_pipeline}, guidance: 2.0}}\n"
        f"data: {{prompts: {tmp_path / 'prompts.txt'}}}\n"
        "method: {name: dmd, regression_weight: 0.25, regression_distance: latent, regression_pairs: 6,"
        " regression_teacher_steps: 2}\n"
    )
    return load(tmp_path / "r.yaml")


@pytest.fixture
def ready(recipe, monkeypatch):
    """The teacher, the conditions of three captions, a function that makes pairs in shards of 4, and the cache."""
    monkeypatch.setattr(shards, "SHARD", 4)
    teacher = StableDiffusion.load(recipe.teacher.path, CPU)
    accelerator = Accelerator(cpu=True)
    dataset = data.prepare(plan_of(recipe.data, False, True), teacher, recipe, accelerator)

    def build(count=6, steps=2) -> Table:
        return make(recipe, teacher, dataset.captions, dataset.cond, (count, steps), accelerator)

    return teacher, dataset.cond, build, recipe.folder / "cache"


def all_rows(table: Table):
    return tuple(table.gather(torch.arange(len(table))).values())


def test_pairs_are_noise_and_the_endpoint_of_the_guided_ode(ready):
    """Bitwise: the expected endpoints are computed in batches of 4, as the shards are."""
    teacher, cond, build, _ = ready
    endpoint, noise = all_rows(build(count=8))
    prompts = torch.arange(8) % 3
    with torch.no_grad():
        expected = [
            teacher_endpoint(teacher, z, cond.gather(rows), 2, 2.0)
            for z, rows in zip(noise.split(4), prompts.split(4), strict=True)
        ]
    assert torch.equal(endpoint, torch.cat(expected))
    assert len({tuple(row.flatten().tolist()) for row in noise}) == 8  # each pair has its own seed
    assert abs(noise.mean()) < 0.2 and 0.8 < noise.std() < 1.2


def test_valid_shards_are_kept_and_damaged_ones_are_made_again_bitwise(ready):
    _, _, build, cache = ready
    before = [x.clone() for x in all_rows(build())]
    first, second = sorted(cache.glob("pairs-*/*.safetensors"))
    stamp = first.stat().st_mtime_ns
    second.write_bytes(second.read_bytes()[:40])  # as on a full disk
    (second.parent / f".{second.name}.999.tmp").write_bytes(b"killed while writing")
    assert all(torch.equal(a, b) for a, b in zip(before, all_rows(build()), strict=True))
    assert first.stat().st_mtime_ns == stamp
    more = all_rows(build(count=9))
    assert torch.equal(more[0][:6], before[0]) and len(more[0]) == 9
    assert first.stat().st_mtime_ns == stamp


def test_shards_that_changed_places_are_made_again(ready):
    """Pair i has caption i, so the rows of another shard would belong to other captions."""
    _, _, build, cache = ready
    before = [x.clone() for x in all_rows(build(count=8))]
    first, second = sorted(cache.glob("pairs-*/*.safetensors"))
    one, two = first.read_bytes(), second.read_bytes()
    tensors, metadata = load_tensors(first)
    tensors = {name: value.clone() for name, value in tensors.items()}  # they were mapped from the file
    first.write_bytes(two)
    second.write_bytes(one)
    assert all(torch.equal(a, b) for a, b in zip(before, all_rows(build(count=8)), strict=True))
    again = load_tensors(first)
    assert again[1] == metadata and all(torch.equal(again[0][name], value) for name, value in tensors.items())


def test_pairs_do_not_depend_on_their_number(ready):
    """Rounding depends on the batch size, so incomplete batches are padded to the size of complete ones."""
    build, cache = ready[2], ready[3]
    ends = []
    for count in (5, 6, 8):
        shutil.rmtree(cache, ignore_errors=True)
        ends.append(all_rows(build(count=count)))
    for few in ends[:2]:
        assert all(torch.equal(x, y[: len(x)]) for x, y in zip(few, ends[2], strict=True))


@pytest.mark.exhaustive
def test_kills_lose_at_most_one_shard(ready, monkeypatch):
    """SIGKILL at random moments: each process continues from the shards that earlier processes finished."""
    _, _, build, cache = ready
    monkeypatch.setattr(shards, "SHARD", 2)
    kept = run_with_kills(lambda: build(count=24), cache)
    stamps = [file.stat().st_mtime_ns for file in kept]
    assert len(all_rows(build(count=24))[0]) == 24
    assert [file.stat().st_mtime_ns for file in kept] == stamps


def test_reading_pairs_that_were_not_requested_is_an_error(ready):
    dataset = data.Dataset(["a"], ready[1], torch.arange(3))
    with pytest.raises(ValueError, match="no teacher pairs"):
        dataset.batch(BatchRandom(("x",), 0, 5, 5, CPU)).pairs()


def test_other_settings_make_other_pairs(ready):
    _, _, build, cache = ready
    two, three = all_rows(build(steps=2)), all_rows(build(steps=3))
    assert torch.equal(two[1], three[1]) and not torch.equal(two[0], three[0])
    assert len(list(cache.iterdir())) == 2


def test_processes_divide_the_shards_without_overlap(ready, monkeypatch):
    """Two processes, the second of which starts late: both check the cache before either writes."""
    build = ready[2]
    made: list[int] = []
    original = teacher_pairs.make_shard
    monkeypatch.setattr(
        teacher_pairs, "make_shard", lambda indices, *args: made.append(indices[0].item()) or original(indices, *args)
    )
    barrier = threading.Barrier(2, timeout=60)
    rank = threading.local()
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(Accelerator, "process_index", property(lambda self: rank.number))
    monkeypatch.setattr(Accelerator, "wait_for_everyone", lambda self: barrier.wait())
    tables: list[Table] = []

    def process(number: int) -> None:
        rank.number = number
        time.sleep(0.5 * number)
        tables.append(build(count=12))

    threads = [threading.Thread(target=process, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [0, 4, 8]
    assert len(tables) == 2 and all(torch.equal(a, b) for a, b in zip(*map(all_rows, tables), strict=True))


def test_batches_have_pairs_with_their_own_captions(ready):
    _, cond, build, _ = ready
    dataset = data.Dataset(["a", "b", "c"], cond, torch.arange(3), None, build())
    batch = dataset.batch(BatchRandom(("x",), 0, 5, 5, CPU))
    noise, endpoint, chosen = batch.pairs()
    assert noise.shape == endpoint.shape and len(noise) == 5
    endpoints, noises = all_rows(dataset.pairs)
    embeddings = cond.gather(torch.arange(3))["encoder_hidden_states"]
    for i in range(5):
        row = next(j for j in range(6) if torch.equal(noises[j], noise[i]))
        assert torch.equal(endpoints[row], endpoint[i])
        assert torch.equal(chosen["encoder_hidden_states"][i], embeddings[row % 3])


def test_the_command_makes_pairs_and_refuses_methods_without_pairs(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shards, "SHARD", 4)
    make_pairs(recipe)
    assert "6 pairs in 2 shards" in capsys.readouterr().out
    with pytest.raises(ValueError, match="regression_weight"):
        make_pairs(load(tmp_path / "r.yaml", ["method.regression_weight=0"]))
