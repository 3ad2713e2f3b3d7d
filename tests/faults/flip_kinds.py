"""The kinds of files that `tests.faults.flips` damages: how an entry is written, and how the commands read it."""

import copy
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from distill.config.recipe import load
from distill.config.saved import load_saved, save
from distill.data import shards, teacher_pairs
from distill.data.encoding import read_index, write_index
from distill.exporting.hub import find_report
from distill.training import best, checkpoint
from distill.training.outcome import Outcome, failed_before, write_failure
from distill.training.run_folder import (
    JsonlLog,
    check_same_run,
    fingerprint,
    held_out_records,
    is_exported,
    record_export,
    run_key,
)
from distill.training.setup import plan_data
from eval.features.extractors import extractor
from eval.metrics import reference
from eval.pipelines import cache as row_cache
from eval.pipelines.runs import EXTERNAL, read_run
from eval.report.training_log import curves
from teachers import pocket
from teachers.families.analytic import Analytic, eight_gaussians
from teachers.loading.record import write_record
from teachers.support.checksums import seal, write_manifest
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


# --- evaluation -------------------------------------------------------------------------------------------------------


def write_row(folder: Path, number: int) -> None:
    features = tensors(number, 60, 20)
    figures = {"latency_ms": 12.5 + number, "nfe": 4, "images_per_second": 31.25, "solver": None}
    covariance = torch.cov(features.double().T)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(number))
    scores = {"prompt_agreement": tensors(number, 60)}
    row = row_cache.Result(figures, features, features.double().mean(0), covariance, images, scores)
    row_cache.save(folder, f"row {number}", row)
    if number:  # exchanged with the other entry's files
        (folder / f"row {number}").rename(folder / "row 0")


def read_row(folder: Path, number: int) -> Any:
    row = row_cache.load(folder, f"row {number if folder.name == '0' else 0}")
    return None if row is None else copy.deepcopy(vars(row))


def write_reference(folder: Path, number: int) -> None:
    features = tensors(number, 300, 192)
    found = reference.Reference(features.double().mean(0), torch.cov(features.double().T), features)
    reference.save(folder / "r.npz", found, extractor("pixels"), 32)


def read_reference(folder: Path, number: int) -> Any:
    return vars(reference.reference(str(folder / "r.npz"), extractor("pixels"), 32))


def write_pipeline(folder: Path, number: int) -> None:
    """A run's folder with an exported pipeline, without a network that could be loaded."""
    pipeline = folder / "run" / "pipeline"
    (pipeline / "unet").mkdir(parents=True)
    (pipeline / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    (pipeline / "unet" / "config.json").write_text(f'{{"sample_size": {8 + number}}}')
    save_file({"w": tensors(number, 30, 30)}, pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    record = {
        "format": 1,
        "name": f"run {number}",
        "method": "dmd",
        "run": run_key(identity(number)),
        "teacher": {"path": "pocket", "call": {"num_inference_steps": 50, "guidance_scale": 2.0}},
        "calls": [{"num_steps": 1, "call": {"num_inference_steps": 1, "guidance_scale": 1.0}}],
        "evaluation": {"prompts": "pocket", "features": "pixels", "reference": None},
        "cost": {"steps": 600, "seconds": 210.5, "samples": 38400, "device": "cpu"},
    }
    write_record(pipeline, record)
    record_export(recipe_of(folder / "run"), identity(number), 4)
    for name in ("history.jsonl", "log.jsonl"):
        log = JsonlLog(folder / "run" / name, 0, run_key(identity(number)))
        for step in range(20):
            values = {"held_out_frechet": {"1": number + 1 / (step + 1)}, "fake_score/loss": number + 1.5 * step}
            log.append({"step": step, "seconds": 2.0 * step, "evaluation": "e"} | values)


def read_pipeline(folder: Path, number: int) -> Any:
    """As `fewstep eval` reads a run: its record, with the pipeline's files. Without a record it is no student."""
    run = read_run(folder / "run")
    if run.method == EXTERNAL:
        return None
    files = [
        (run.folder / "unet" / name).read_bytes() for name in ("config.json", "diffusion_pytorch_model.safetensors")
    ]
    return [asdict(replace(run, folder=Path())), files, (run.folder / "model_index.json").read_bytes()]


def read_exported(folder: Path, number: int) -> Any:
    """Whether `fewstep train` calls the run finished; otherwise it exports again."""
    meta = {"fingerprint": identity(number), "step": 4}
    return True if is_exported(folder / "run", meta, recipe_of(folder / "run")) else None


def read_curves(folder: Path, number: int) -> Any:
    """The points of the report's curves; fewer points mean that damage was found."""
    points = [
        (curve["figure"], *point)
        for curve in curves([read_run(folder / "run")])
        for point in zip(curve["seconds"], curve["values"], strict=True)
    ]
    distances = [("Held-out Frechet distance", 2.0 * step, number + 1 / (step + 1)) for step in range(20)]
    expected = [*distances, *(("Fake score's loss", 2.0 * step, number + 1.5 * step) for step in range(20))]
    return None if len(points) < len(expected) and set(points) <= set(expected) else points


def write_report(folder: Path, number: int) -> None:
    (folder / "pipeline").mkdir()
    (folder / "pipeline" / "distill.json").write_text("{}")
    (folder / "report").mkdir()
    rows = [{"name": "a", "method": "dmd", "frechet_distance": 2.75 + number, "pipeline": "x"}]
    report = {"runs": [{"folder": str(folder / "pipeline"), "name": "a"}], "rows": rows, "samples": 500}
    (folder / "report" / "report.json").write_text(json.dumps(seal(report), indent=2))


def read_report(folder: Path, number: int) -> Any:
    os.utime(folder / "pipeline" / "distill.json", (1e9, 1e9))
    return find_report(folder / "pipeline", folder / "report")


@cache
def recipe_identity(folder: Path, number: int) -> dict[str, str]:
    return fingerprint(recipe_of(folder, number), plan_data(recipe_of(folder, number)))


def write_recipe(folder: Path, number: int) -> None:
    recipe_identity(folder, number)
    save(recipe_of(folder, number))


def read_recipe(folder: Path, number: int) -> Any:
    """As `fewstep export` reads the recipe of a stopped run."""
    recipe = load_saved(folder / "recipe.yaml")
    meta = {"fingerprint": recipe_identity(folder, number)}
    check_same_run(meta, recipe, fingerprint(recipe, plan_data(recipe)))
    return asdict(recipe)


def write_weights(folder: Path, number: int) -> None:
    save_file(
        {"mean": tensors(number, 64).double(), "covariance": torch.eye(64).double()}, folder / "reference.safetensors"
    )
    labels = torch.arange(50, dtype=torch.uint8)
    save_file({"latents": tensors(number, 50, 4, 8, 8).half(), "labels": labels}, folder / "latents.safetensors")
    (folder / "pipeline").mkdir()
    (folder / "pipeline" / "model_index.json").write_text(f'{{"number": {number}}}')
    write_manifest(folder, {"name": "pocket"})


def read_weights(folder: Path, number: int) -> Any:
    with patch.object(pocket, "FOLDER", folder), patch.object(pocket, "PIPELINE", folder / "pipeline"):
        index = (pocket.pipeline() / "model_index.json").read_bytes()
        return copy.deepcopy([pocket.reference(), pocket.examples(), index])


def write_keys(folder: Path, number: int) -> None:
    write_index(folder / "i.json", f"key {number}", [f"{number}{i}" * 32 for i in range(9)])


KINDS = (
    Kind("checkpoint", write_checkpoints, read_checkpoint, aim="00000004/"),
    Kind("best EMA", write_best, read_best),
    Kind("history.jsonl", write_history, read_history),
    Kind("failed.json", write_failed, read_failed, lambda name: name == "failed.json"),
    Kind("encoded shard", write_shard, read_shard),
    Kind("index of encoded images", write_keys, lambda f, n: read_index(f / "i.json", f"key {n}")),
    Kind("teacher pairs", make_pairs, make_pairs),
    Kind("monitor's teacher samples", write_shard, read_cached),
    Kind("measured row", write_row, read_row),
    Kind("reference", write_reference, read_reference, chosen=True),
    Kind("exported pipeline", write_pipeline, read_pipeline, lambda name: "pipeline" in name, chosen=True),
    Kind("exported.json", write_pipeline, read_exported, lambda name: "pipeline" in name or "exported" in name),
    Kind("curves in the report", write_pipeline, read_curves, lambda name: name.endswith(".jsonl")),
    Kind("report.json", write_report, read_report, lambda name: name.endswith("report.json")),
    Kind("recipe.yaml", write_recipe, read_recipe),
    Kind("pocket weights", write_weights, read_weights, chosen=True),
)  # fmt: skip
