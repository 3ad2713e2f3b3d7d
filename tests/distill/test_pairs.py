"""Teacher pairs: what they are, that they are made once, and that nothing stops them from being finished."""

import threading
import time

import pytest
import torch
from accelerate import Accelerator

from distill.config.recipe import load
from distill.data import dataset as data
from distill.data import shards, teacher_pairs
from distill.data.batch_random import BatchRandom
from distill.data.shards import Table
from distill.data.teacher_pairs import make
from distill.pairs import make_pairs
from teachers.core.sampling import teacher_endpoint
from teachers.families.stable_diffusion import StableDiffusion
from tests.faults.hunt import hunted

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
    monkeypatch.setattr(shards, "SHARD", 4)
    teacher = StableDiffusion.load(recipe.teacher.path, CPU)
    engine = Accelerator(cpu=True)
    dataset = data.prepare(data.plan(recipe.data, False, True), teacher, recipe, engine)

    def build(count=6, steps=2) -> Table:
        return make(recipe, teacher, dataset.captions, dataset.cond, (count, steps), engine)

    return teacher, dataset.cond, build, recipe.folder / "cache"


def everything(table: Table):
    return tuple(table.take(torch.arange(len(table))).values())


def test_a_pair_is_noise_and_the_guided_odes_endpoint(ready):
    teacher, cond, build, _ = ready
    endpoint, noise = everything(build())
    with torch.no_grad():
        wanted = teacher_endpoint(teacher, noise, cond.take(torch.tensor([0, 1, 2, 0, 1, 2])), 2, 2.0)
    assert torch.allclose(endpoint, wanted, atol=1e-5)
    assert len({tuple(row.flatten().tolist()) for row in noise}) == 6  # each from a seed of its own
    assert abs(noise.mean()) < 0.2 and 0.8 < noise.std() < 1.2


def test_what_exists_is_kept_and_what_is_damaged_is_made_again(ready):
    _, _, build, cache = ready
    before = [x.clone() for x in everything(build())]
    first, second = sorted(cache.glob("pairs-*/*.safetensors"))
    stamp = first.stat().st_mtime_ns
    second.write_bytes(second.read_bytes()[:40])  # a disk that filled up
    (second.parent / ".000001.safetensors.999.tmp").write_bytes(b"killed while writing")
    assert all(torch.equal(a, b) for a, b in zip(before, everything(build()), strict=True))
    assert first.stat().st_mtime_ns == stamp
    more = everything(build(count=9))
    assert torch.equal(more[0][:6], before[0]) and len(more[0]) == 9
    assert first.stat().st_mtime_ns == stamp


def test_kills_lose_one_shard_at_most(ready, monkeypatch):
    """SIGKILL at random moments: each life goes on from the shards that the lives before have finished."""
    _, _, build, cache = ready
    monkeypatch.setattr(shards, "SHARD", 2)
    found = hunted(lambda: build(count=24), cache)
    stamps = [file.stat().st_mtime_ns for file in found]
    assert len(everything(build(count=24))[0]) == 24
    assert [file.stat().st_mtime_ns for file in found] == stamps


def test_pairs_that_nobody_asked_for_are_named(ready):
    dataset = data.Dataset(["a"], ready[1], torch.arange(3))
    with pytest.raises(ValueError, match="no teacher pairs"):
        dataset.batch(BatchRandom(("x",), 0, 5, 5, CPU)).pairs()


def test_other_settings_make_other_pairs(ready):
    _, _, build, cache = ready
    two, three = everything(build(steps=2)), everything(build(steps=3))
    assert torch.equal(two[1], three[1]) and not torch.equal(two[0], three[0])
    assert len(list(cache.iterdir())) == 2


def test_processes_share_the_shards_without_overlap(ready, monkeypatch):
    """Two ranks of which the second arrives late: both look before either writes, and each makes its own half."""
    build = ready[2]
    made: list[int] = []
    original = teacher_pairs.make_shard
    monkeypatch.setattr(
        teacher_pairs, "make_shard", lambda seeds, *args: made.append(seeds[0].item()) or original(seeds, *args)
    )
    barrier = threading.Barrier(2, timeout=60)
    rank = threading.local()
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(Accelerator, "process_index", property(lambda self: rank.number))
    monkeypatch.setattr(Accelerator, "wait_for_everyone", lambda self: barrier.wait())
    stores: list[Table] = []

    def process(number: int) -> None:
        rank.number = number
        time.sleep(0.5 * number)
        stores.append(build(count=12))

    threads = [threading.Thread(target=process, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [0, 4, 8]
    assert len(stores) == 2 and all(torch.equal(a, b) for a, b in zip(*map(everything, stores), strict=True))


def test_batches_carry_pairs_with_their_own_captions(ready):
    _, cond, build, _ = ready
    dataset = data.Dataset(["a", "b", "c"], cond, torch.arange(3), None, build())
    batch = dataset.batch(BatchRandom(("x",), 0, 5, 5, CPU))
    noise, endpoint, chosen = batch.pairs()
    assert noise.shape == endpoint.shape and len(noise) == 5
    endpoints, noises = everything(dataset.pairs)
    words = cond.take(torch.arange(3))["encoder_hidden_states"]
    for i in range(5):
        row = next(j for j in range(6) if torch.equal(noises[j], noise[i]))
        assert torch.equal(endpoints[row], endpoint[i])
        assert torch.equal(chosen["encoder_hidden_states"][i], words[row % 3])


def test_the_command_makes_pairs_and_says_when_none_are_wanted(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shards, "SHARD", 4)
    make_pairs(recipe)
    assert "6 pairs in 2 shards" in capsys.readouterr().out
    with pytest.raises(ValueError, match="regression_weight"):
        make_pairs(load(tmp_path / "r.yaml", ["method.regression_weight=0"]))
