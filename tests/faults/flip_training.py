"""Files of training and data that `tests.faults.flips` damages: how they are written, and how commands read them."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator

from distill.config.recipe import load
from distill.data import shards, teacher_pairs
from distill.training import best, checkpoint
from distill.training.jsonl_log import JsonlLog, held_out_records
from distill.training.outcome import Outcome, failed_before, write_failure
from distill.training.run_folder import check_same_run
from teachers.families.analytic import Analytic, eight_gaussians
from tests.settings import RECIPES

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        name: Its name.
        write: Writes entry `number` into an empty folder.
        read: Reads entry `number` as the commands do: its value; None if it must be computed again.
        damages: Whether a file of the entry is damaged; by default all are.
        chosen: Whether the user chooses the entry by its path, so that another whole entry there is no damage.
        aim: What the names of files contain that are flipped, truncated and zeroed.
    """

    name: str
    write: Callable[[Path, int], object]
    read: Callable[[Path, int], Any]
    damages: Callable[[str], bool] = lambda name: True
    chosen: bool = False
    aim: str = ""


def tensors(number: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(number))


def identity(number: int) -> dict[str, str]:
    return {"seed": str(number), "the captions": "c" * 64}


@cache
def recipe_of(folder: Path, number: int = 0) -> Any:
    """A recipe whose run is `folder`."""
    names = [f"output={folder.parent}", f"name={folder.name}", f"seed={number}", "train.batch_size=2"]
    return load(RECIPES / "dmd.yaml", [*names, "train.accumulation=1"])


# --- training ---------------------------------------------------------------------------------------------------------


def write_checkpoints(folder: Path, number: int) -> None:
    for step in (2, 4):
        a, b = tensors(10 * number + step, 900), tensors(10 * number + step + 1, 300)
        optimizers = {"student": {"state": {0: {"m": a[:50].clone()}}, "param_groups": [{"lr": 1e-4 * step}]}}
        meta = {"step": step, "seconds": 1.5 * step, "fingerprint": identity(number)}
        checkpoint.save(folder, checkpoint.Checkpoint({"a": a}, {"a": b}, optimizers, meta), keep=9)


def read_checkpoint(folder: Path, number: int) -> Any:
    """What a start does. The checkpoint of step 2 instead of that of step 4 means that damage was found."""

    class Run:
        folder = Path("run")

    meta = checkpoint.newest_meta(folder)
    if meta is not None:
        check_same_run(meta, Run, identity(number))  # type: ignore[arg-type]
    checkpoint.quarantine_damaged(folder)
    loaded = checkpoint.load_newest(folder)
    if loaded is None:
        return None
    check_same_run(loaded.meta, Run, identity(number))  # type: ignore[arg-type]
    earlier = loaded.meta == {"step": 2, "seconds": 3.0, "fingerprint": identity(number)}
    if earlier and torch.equal(loaded.weights["a"], tensors(10 * number + 2, 900)):
        return None
    return copy.deepcopy([loaded.weights, loaded.ema, loaded.optimizers, loaded.meta])


def write_best(folder: Path, number: int) -> None:
    record = {"step": 4, "seconds": 6.5, "held_out_frechet": {"1": 2.5, "2": None}, "evaluation": "e" * 12}
    best.save_best(folder, {"w": tensors(number, 40, 30)}, record | {"fingerprint": f"run {number}"})


def read_best(folder: Path, number: int) -> Any:
    record, weights = best.best_record(folder, f"run {number}"), best.load_best(folder)
    return None if record is None or weights is None else [record, weights["w"].clone()]


def write_history(folder: Path, number: int) -> None:
    log = JsonlLog(folder / "history.jsonl", 0, f"run {number}")
    for step in range(0, 100, 2):
        log.append({"step": step, "seconds": 1.25 * step, "held_out_frechet": {"1": step / 3}, "evaluation": "e"})


def read_history(folder: Path, number: int) -> Any:
    """The records. Fewer ones mean that damage was found: the run's last evaluation is repeated if it is missing."""
    found = held_out_records(folder / "history.jsonl", f"run {number}")
    expected = [(step, {"1": step / 3}) for step in range(0, 100, 2)]
    missing = len(found) < len(expected) and all((r["step"], r["held_out_frechet"]) in expected for r in found)
    return None if missing else found


def write_failed(folder: Path, number: int) -> None:
    checkpoint.save(folder / "checkpoints", checkpoint.Checkpoint({}, {}, {}, {"step": 4 + number}), keep=1)
    write_failure(folder, Outcome(4 + number, None, f"samples {number} collapsed", f"run {number}"))


def read_failed(folder: Path, number: int) -> Any:
    outcome = failed_before(folder, f"run {number}")
    return None if outcome is None else asdict(outcome)


# --- data -------------------------------------------------------------------------------------------------------------


def write_shard(folder: Path, number: int) -> None:
    rows = {"x": tensors(number, 4, 4, 8, 8), "prompt": tensors(number, 4, 7).half()}
    rows["captions"] = torch.arange(40, dtype=torch.uint8)
    shards.write(folder / "s.safetensors", f"key {number}", rows)


def read_shard(folder: Path, number: int) -> Any:
    found = shards.read(folder / "s.safetensors", f"key {number}", 4)
    return None if found is None else {name: value.clone() for name, value in found.items()}


def read_cached(folder: Path, number: int) -> Any:
    """As the monitor reads the teacher's samples and diversity."""
    found = shards.cached(folder / "s.safetensors", f"key {number}", lambda: {"computed": torch.ones(1)})
    return None if "computed" in found else {name: value.clone() for name, value in found.items()}


def make_pairs(folder: Path, number: int) -> Any:
    """Six pairs in two shards; damaged shards are made again."""
    teacher, cond, recipe = Analytic(eight_gaussians()), shards.Table([{}], CPU), recipe_of(folder / "run", number)
    with patch.object(shards, "SHARD", 4), patch("distill.data.teacher_pairs.tqdm"):
        table = teacher_pairs.make(recipe, teacher, ["a", "b"], cond, (6, 1), Accelerator(cpu=True), {"w": "1"})
    return {name: value.clone() for name, value in table.gather(torch.arange(6)).items()}
