"""The kinds of files that `tests.faults.flips` damages: how an entry is written, and how the commands read it."""

import copy
import json
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file

from distill.config.saved import load_saved, save
from distill.data.encoding import read_index, write_index
from distill.exporting.hub import find_report
from distill.training.export_record import is_exported, record_export
from distill.training.jsonl_log import JsonlLog
from distill.training.run_folder import check_same_run, fingerprint, run_key
from distill.training.setup import plan_data
from eval.features.extractors import extractor
from eval.metrics import reference
from eval.pipelines import cache as row_cache
from eval.pipelines.runs import EXTERNAL, pipeline_identity, read_run
from eval.report.training_log import curves
from teachers import pocket
from teachers.loading.embedded import EMBEDDED
from teachers.loading.record import write_record
from teachers.support.checksums import seal, write_manifest
from tests.faults.flip_training import (
    Kind,
    identity,
    make_pairs,
    read_best,
    read_cached,
    read_checkpoint,
    read_failed,
    read_history,
    read_shard,
    recipe_of,
    tensors,
    write_best,
    write_checkpoints,
    write_failed,
    write_history,
    write_shard,
)

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
    record_export(recipe_of(folder / "run"), run_key(identity(number)), 4)
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
    return True if is_exported(folder / "run", run_key(identity(number)), 4) else None


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
    (folder / "pipeline" / "distill.json").write_text(f'{{"number": {number}}}')  # a report follows the contents
    (folder / "report").mkdir()
    rows = [{"name": "a", "method": "dmd", "frechet_distance": 2.75 + number, "pipeline": "x"}]
    entry = {"folder": str(folder / "pipeline"), "name": "a", "contents": pipeline_identity(folder / "pipeline")}
    report = {"runs": [entry], "rows": rows, "samples": 500}
    (folder / "report" / "report.json").write_text(json.dumps(seal(report), indent=2))


def read_report(folder: Path, number: int) -> Any:
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
        teacher = EMBEDDED["pocket"]
        index = (teacher.pipeline() / "model_index.json").read_bytes()
        return copy.deepcopy([teacher.reference(), teacher.labelled_examples(), index])


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
