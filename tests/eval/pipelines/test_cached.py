"""Keys of measured rows: everything that a row is measured from, and nothing else."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from eval.config.options import Timing
from eval.features.extractors import extractor
from eval.metrics.base import SampleMetric
from eval.metrics.context import MetricContext
from eval.metrics.diversity import DiversityLpips
from eval.metrics.reference import reference
from eval.pipelines import cache
from eval.pipelines.cached import pipeline_key, row_key
from eval.pipelines.jobs import Job
from eval.pipelines.settings import Settings
from teachers.support.checksums import write_manifest

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def setting() -> Settings:
    return Settings(4, 4, 0, CPU, "float32", ["a", "b", "a", "b"], extractor("pixels"))


JOB = Job("x, 1 step", "dmd", 1, Path("pipeline"), {"num_inference_steps": 1})
CHANGES = {
    "samples": 5,
    "batch_size": 2,
    "seed": 1,
    "precision": "bfloat16",
    "prompts": ["b", "a", "a", "b"],
    "compiled": True,
    "size": 16,
    "timing": Timing(repeats=3),
    "extractor": dataclasses.replace(extractor("pixels"), weights="other"),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.first_is_quick
def test_any_changed_setting_is_another_row(setting, name):
    before = row_key(JOB, setting, "p", {"cpu": "a"})
    assert row_key(JOB, dataclasses.replace(setting), "p", {"cpu": "a"}) == before
    assert row_key(JOB, dataclasses.replace(setting, **{name: CHANGES[name]}), "p", {"cpu": "a"}) != before


def test_call_solver_stream_pipeline_and_machine_count_but_not_names(setting):
    before = row_key(JOB, setting, "p", {"cpu": "a"})
    jobs = [
        dataclasses.replace(JOB, call={"num_inference_steps": 2}),
        dataclasses.replace(JOB, call={"num_inference_steps": 1, "guidance_scale": 2.0}),
        dataclasses.replace(JOB, fast_solver=True),
        dataclasses.replace(JOB, is_reference=True),
    ]
    found = {row_key(job, setting, "p", {"cpu": "a"}) for job in jobs}
    found |= {row_key(JOB, setting, "q", {"cpu": "a"}), row_key(JOB, setting, "p", {"cpu": "b"})}
    assert len(found | {before}) == 7
    assert row_key(dataclasses.replace(JOB, name="y", folder=Path("moved")), setting, "p", {"cpu": "a"}) == before


@pytest.mark.slow
def test_every_file_of_a_pipeline_counts_but_not_its_card(text_pipeline, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(text_pipeline, folder)
    before = pipeline_key(folder)
    assert pipeline_key(text_pipeline) == before
    (folder / "README.md").write_text("a card")
    (folder / "distill.json").write_text("{}")  # its calls are part of the row's key
    assert pipeline_key(folder) == before
    for file in sorted(f for f in text_pipeline.rglob("*") if f.is_file()):
        copy, original = folder / file.relative_to(text_pipeline), file.read_bytes()
        copy.write_bytes(original[:-1] + b"\1")
        os.utime(copy, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
        assert pipeline_key(folder) != before, copy
        copy.write_bytes(original)
    config = folder / "scheduler/scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"steps_offset": 3}))
    assert pipeline_key(folder) != before


class Brightness(SampleMetric):
    key, heading, help, higher_is_better = "brightness", "Brightness", "Mean of the pixels.", True

    def score(self, images, prompts):
        return images.mean(dim=(1, 2, 3))


class Darkness(Brightness):
    def score(self, images, prompts):
        return 1 - super().score(images, prompts)


@pytest.mark.slow
def test_metrics_count_with_their_code_and_weights(setting):
    def row(*metrics) -> str:
        return row_key(JOB, dataclasses.replace(setting, metrics=metrics), "p", {})

    class Distance:
        weights = "1"

    context = MetricContext(4, 0, CPU, setting.extractor, 192, lpips=Distance())
    found = [row(), row(Brightness(context)), row(Darkness(context)), row(DiversityLpips(context))]
    context.lpips.weights = "2"
    found.append(row(DiversityLpips(context)))
    assert len(set(found)) == 5


def test_features_are_identified_by_their_weights(pocket_weights):
    before = extractor("pocket").weights
    assert before == extractor("pocket").weights
    file = pocket_weights / "classifier.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    assert extractor("pocket").weights != before


def test_a_reference_is_read_again_if_an_image_changes(tmp_path):
    for i in range(3):
        Image.new("RGB", (16, 16), (50 * i, 20, 90)).save(tmp_path / f"{i}.bmp")
    before, status = reference(str(tmp_path), extractor("pixels")), (tmp_path / "1.bmp").stat()
    (tmp_path / "1.bmp").write_bytes((tmp_path / "1.bmp").read_bytes()[:-1] + b"\7")
    os.utime(tmp_path / "1.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not torch.equal(reference(str(tmp_path), extractor("pixels")).mean, before.mean)


def write_features(folder: Path, **changes: torch.Tensor) -> None:
    tensors = {"features": torch.rand(6, 20), "mean": torch.rand(20), "covariance": torch.eye(20)}
    save_file(tensors | changes, folder / cache.FEATURES)


STRANGE = {
    "no images": lambda folder: (folder / cache.FIGURES).write_text('{"images": 0}'),
    "figures as a list": lambda folder: (folder / cache.FIGURES).write_text("[]"),
    "deep figures": lambda folder: (folder / cache.FIGURES).write_text("[" * 100_000),
    "a huge image": lambda folder: Image.new("1", (20_000, 20_000)).save(folder / cache.IMAGES[0]),
    "widths": lambda folder: write_features(folder, features=torch.rand(6, 3)),
    "one dimension": lambda folder: write_features(folder, features=torch.rand(6)),
    "integers": lambda folder: write_features(folder, features=torch.ones(6, 20, dtype=torch.int64)),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", STRANGE)
def test_a_row_with_valid_checksums_that_no_command_writes_is_measured_again(tmp_path, change):
    features = torch.rand(6, 20)
    row = cache.Result({}, features, features.mean(0), torch.cov(features.T), torch.rand(3, 3, 8, 8))
    cache.save(tmp_path, "row", row)
    assert cache.load(tmp_path, "row") is not None
    STRANGE[change](tmp_path / "row")
    (tmp_path / "row" / "manifest.json").unlink()
    write_manifest(tmp_path / "row", {"key": "row"})
    assert cache.load(tmp_path, "row") is None
