"""A metric of another installed package appears in every file of the report; a broken one is named and left out."""

import csv
import json
import sys
from importlib.metadata import EntryPoint

import pytest
import torch
import yaml

from eval.compare import compare
from eval.features.extractors import extractor
from eval.metrics.base import SampleMetric
from eval.metrics.context import MetricContext
from eval.metrics.registry import GROUP, installed_metrics
from eval.pipelines.cached import row_key
from eval.pipelines.generate import arguments, images_of, load_pipeline
from eval.pipelines.jobs import Job
from eval.pipelines.settings import Settings
from tests.settings import PLUGIN

CPU = torch.device("cpu")


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The plug-in package on the path with the metadata that pip would install, and an entry point that fails."""
    info = tmp_path / "site" / "fewstep_plugin-0.0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fewstep-plugin\nVersion: 0.0.1\n")
    points = (
        "mean_brightness = fewstep_plugin.mean_brightness:MeanBrightness",
        "sharpness = fewstep_plugin.gone:Sharp",
    )
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *points]) + "\n")
    monkeypatch.syspath_prepend(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "fewstep_plugin"]:
        del sys.modules[name]


@pytest.mark.slow
@pytest.mark.usefixtures("plugin")
def test_a_plugin_metric_is_in_every_file_of_the_report(make_run, text_pipeline, quick, tmp_path):
    out = tmp_path / "out"
    compare([make_run()], out, samples=6, batch_size=4, **quick)

    stored = json.loads((out / "report.json").read_text())
    row = stored["rows"][-1]
    value, (low, high) = row["mean_brightness"], row["mean_brightness_interval"]
    pipe = load_pipeline(text_pipeline, CPU, torch.float32)
    with torch.inference_mode():
        images = images_of(pipe(**arguments(pipe, row["call"], list(stored["prompts"]["first"]), range(6))))
    assert value == pytest.approx(images.mean().item(), rel=1e-4)
    assert low < value < high

    text, interval = f"{value:.1%}", f"{100 * low:.1f}–{high:.1%}"
    page = (out / "report.html").read_text()
    assert f'data-key="mean_brightness" data-value="{value}">{text}<' in page
    assert f">{interval}<" in page
    assert "<dt>Brightness</dt><dd>Mean pixel value, 0 for black and 1 for white.</dd>" in page
    markdown = (out / "report.md").read_text()
    assert f"| {text} ({interval}) |" in markdown
    assert "- **Brightness**: Mean pixel value" in markdown
    with (out / "report.csv").open(newline="") as file:
        line = list(csv.DictReader(file))[-1]
    keys = ("mean_brightness", "mean_brightness_low", "mean_brightness_high")
    assert [float(line[key]) for key in keys] == [value, low, high]
    (document,) = yaml.safe_load_all((out / "model-index.yaml").read_text())
    (metric,) = [
        metric for metric in document["model-index"][0]["results"][0]["metrics"] if metric["type"] == "mean_brightness"
    ]
    assert metric == {"name": "Brightness, 1 step", "type": "mean_brightness", "value": value}

    (note,) = [note for note in stored["notes"] if "sharpness" in note]
    assert "could not be loaded and is left out: ModuleNotFoundError" in note
    assert "sharpness" in page


def entry_point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, GROUP)


def test_entry_points_that_are_no_metrics_are_reported():
    built_in = entry_point("kid", "eval.metrics.kid:KernelInceptionDistance")
    found = installed_metrics(
        [
            built_in,
            entry_point("again", "eval.metrics.kid:KernelInceptionDistance"),
            entry_point("function", "eval.metrics.kid:mmd"),
            entry_point("incomplete", "eval.metrics.base:SampleMetric"),
        ]
    )
    assert [metric.key for metric in found.classes] == ["kid"]
    assert len(found.problems) == 3
    for problem, words in zip(found.problems, ["already belongs", "a subclass of", 'no attribute "key"'], strict=True):
        assert words in problem
    with pytest.raises(ValueError, match="no metric is installed"):
        installed_metrics([])


class WeightedBrightness(SampleMetric):
    """A metric that reads weights."""

    key, heading, help, higher_is_better = "weighted", "Weighted brightness", "Weighted mean of the channels.", True
    weights = (0.3, 0.6, 0.1)

    def score(self, images, prompts):
        return (images.mean(dim=(2, 3)) * torch.tensor(self.weights)).sum(dim=1)

    def cache_key(self):
        return [*super().cache_key(), self.weights]


def test_cached_rows_depend_on_what_their_scores_depend_on(tmp_path):
    pixels, job = extractor("pixels"), Job("x, 1 step", "dmd", 1, tmp_path, {})
    metric = WeightedBrightness(MetricContext(4, 0, CPU, pixels, 192))

    def key(*metrics):
        return row_key(job, Settings(4, 4, 0, CPU, "float32", None, pixels, metrics), "pipeline", {})

    before = key(metric)
    assert key(metric) == before != key()
    metric.weights = (0.2, 0.7, 0.1)
    assert key(metric) != before
