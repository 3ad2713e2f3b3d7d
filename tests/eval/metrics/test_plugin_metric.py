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
from eval.pipelines.generate import arguments
from eval.pipelines.jobs import Job
from eval.pipelines.loading import load_pipeline
from eval.pipelines.settings import Settings
from teachers.media import ANY_IMAGE
from tests.plugins import install
from tests.settings import PLUGIN

CPU = torch.device("cpu")


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The plug-in package, installed, and an entry point that fails."""
    points = (
        "mean_brightness = fewstep_plugin.mean_brightness:MeanBrightness",
        "sharpness = fewstep_plugin.gone:Sharp",
    )
    install(monkeypatch, tmp_path / "site", "fewstep-plugin", {GROUP: points})
    monkeypatch.syspath_prepend(PLUGIN)
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
        images = ANY_IMAGE.received(pipe(**arguments(pipe, row["call"], list(stored["prompts"]["first"]), range(6))))
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


METRICS = """
from eval.metrics.base import SampleMetric

class Kid(SampleMetric):
    key, heading, help, higher_is_better = "kid", "KID", "Another metric with the key of one of this project.", False

class Failing(SampleMetric):
    key, heading, help, higher_is_better = "failing", "Failing", "It cannot be created.", None

    def __init__(self, context):
        raise RuntimeError("no licence")
"""


def test_a_plugin_metric_neither_replaces_an_own_one_nor_breaks_others_when_it_is_created(tmp_path, monkeypatch):
    points = ["a_kid = other_metrics:Kid", "failing = other_metrics:Failing", "exits = exiting_metrics:Any"]
    install(monkeypatch, tmp_path / "site", "other-metrics", {GROUP: points})
    (tmp_path / "site" / "other_metrics.py").write_text(METRICS)
    (tmp_path / "site" / "exiting_metrics.py").write_text("raise SystemExit(1)")
    found = installed_metrics()
    assert found.classes[[metric.key for metric in found.classes].index("kid")].__module__ == "eval.metrics.kid"
    assert [name for problem in found.problems for name in ("a_kid", "exits") if f'"{name}"' in problem] == [
        "a_kid",
        "exits",
    ]
    built = found.build(MetricContext(4, 0, CPU, extractor("pixels"), 192))
    assert "frechet_distance" in [metric.key for metric in built]
    assert 'The metric "failing" (other_metrics) could not be loaded' in found.problems[-1]
    del sys.modules["other_metrics"]


BROKEN = {  # the body of a metric by the words of its note
    "boom": "    def score(self, images, prompts): raise RuntimeError('boom')",
    "one for each sample, got torch.float32 of the shape (2, 1)": (
        "    def score(self, images, prompts): return images.mean(dim=(1, 2, 3))[:, None]"
    ),
    "got <class 'float'>": "    def score(self, images, prompts): return 0.5",
    "got <class 'numpy.ndarray'>": "    def score(self, images, prompts): return images.mean(dim=(1, 2, 3)).numpy()",
    "got torch.complex64": "    def score(self, images, prompts): return images.mean(dim=(1, 2, 3)) * 1j",
    "must be a finite number, got inf": "    def score(self, images, prompts): return torch.ones(len(images)) / 0",
    "must be a finite number, got nan": "    def compute(self, row): return Figure(float('nan'))",
    "must be a finite number, got 'good'": "    def compute(self, row): return Figure('good')",
    "compute must return a Figure or None, got float": "    def compute(self, row): return 0.5",
    "'float' object is not iterable": "    def compute(self, row): return Figure(0.5, 0.1)",
    "must have two ends, got 3": "    def compute(self, row): return Figure(0.5, (0.1, 0.2, 0.3))",
    "4 real numbers, got torch.float32 of the shape (2,)": (
        "    def compute(self, row): return Figure(0.5, (0, 1), torch.ones(2))"
    ),
    "4 real numbers, got torch.complex64": "    def compute(self, row): return Figure(1, influence=1j * torch.ones(4))",
    "the influence of a Figure must be finite": "    def compute(self, row): return Figure(1, None, torch.ones(4) / 0)",
    "lower end first, got [1.0, 0.0]": "    def compute(self, row): return Figure(0.5, (1, 0))",
    "describe must return a dict": "    def describe(self): return {'key': self.key}",
    "is not JSON serializable": "    def describe(self): return super().describe() | {'help': self}",
    "key, interval_key, best_key and ratio_key must differ": "    ratio_key = best_key = 'same'",
    "the entries of a metric must be names": "    interval_key = None",
    "marks_best must be False": "    higher_is_better, marks_best = None, True",
    "KeyError: 'gone'": "    def compute(self, row): return row.scores['gone']",
    "no content": "    def cache_key(self): raise OSError('no content')",
    'writes the entry "name"': "    ratio_key = 'name'",
    "format must be a format specification": "    format = '.3q'",
    "position must be a number": "    position = 'last'",
    "heading must be a text": "    heading = None",
    "help must be a text": "    help = None",
    "higher_is_better must be True, False or None": "    higher_is_better = 'yes'",
    "key must be a name": "    key = 'my key'",
    "media must be a set": "    media = 'image'",
    "scale must be a number": "    scale = 'x'",
}


HOSTILE = """
    def __init__(self, context):
        super().__init__(context)
        torch.manual_seed(1)
        torch.set_default_dtype(torch.float64)

    def compute(self, row):
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float16)
        for tensor in (row.features, row.mean, row.covariance, row.images, row.reference.mean, row.reference.features):
            tensor.zero_()
        for scores in row.scores.values():
            scores.fill_(7)
        return Figure(0.0)
"""


def broken_metrics(folder) -> list[str]:
    """Write a module with a metric for each of BROKEN, and one that works; returns their entry points."""
    head = ["import torch", "from eval.metrics.base import Figure, SampleMetric", ""]
    bodies = [*BROKEN.values(), HOSTILE]
    for number, body in enumerate(bodies):
        head += [
            f"class M{number}(SampleMetric):",
            f"    key, heading, help, higher_is_better = 'mine_{number}', 'Mine', 'Mean.', True",
            "    position = -1",
            "    def score(self, images, prompts): return images.zero_().mean(dim=(1, 2, 3))",
            body,
            "",
        ]
    folder.mkdir(exist_ok=True)
    (folder / "broken_metrics.py").write_text("\n".join(head), encoding="utf-8")
    return [f"mine_{number} = broken_metrics:M{number}" for number in range(len(bodies))]


@pytest.mark.slow
def test_broken_plugin_metrics_are_named_and_change_nothing_else(make_run, quick, tmp_path, monkeypatch):
    """The last of them works, but changes all tensors that it gets and PyTorch's settings, before own metrics."""
    run = make_run()
    compare([run], tmp_path / "without", samples=4, batch_size=2, **quick)
    install(monkeypatch, tmp_path / "site", "broken", {GROUP: broken_metrics(tmp_path / "site")})
    compare([run], tmp_path / "with", samples=4, batch_size=2, **quick)
    del sys.modules["broken_metrics"]
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("without", "with")]

    before, after = (report["rows"][-1] for report in reports)
    figures = [metric["key"] for metric in reports[0]["metrics"]]
    assert {key: after[key] for key in figures} == {key: before[key] for key in figures} and len(figures) > 3
    kept = [metric["key"] for metric in reports[1]["metrics"] if metric["key"] not in figures]
    assert kept == [f"mine_{len(BROKEN)}"] and after[kept[0]] == 0
    assert torch.get_default_dtype() == torch.float32
    for words in BROKEN:
        assert [note for note in reports[1]["notes"] if "(broken_metrics" in note and words in note], words


class WeightedBrightness(SampleMetric):
    """A metric that reads weights."""

    key, heading, help, higher_is_better = "weighted", "Weighted brightness", "Weighted mean of the channels.", True
    weights = (0.3, 0.6, 0.1)

    def score(self, images, prompts):
        return (images.mean(dim=(2, 3)) * torch.tensor(self.weights)).sum(dim=1)

    def cache_key(self):
        return [*super().cache_key(), self.weights]


@pytest.mark.slow
def test_cached_rows_depend_on_what_their_scores_depend_on(tmp_path):
    pixels, job = extractor("pixels"), Job("x, 1 step", "dmd", 1, tmp_path, {})
    metric = WeightedBrightness(MetricContext(4, 0, CPU, pixels, 192))

    def key(*metrics):
        return row_key(job, Settings(4, 4, 0, CPU, "float32", None, pixels, metrics), "pipeline", {})

    before = key(metric)
    assert key(metric) == before != key()
    metric.weights = (0.2, 0.7, 0.1)
    assert key(metric) != before
