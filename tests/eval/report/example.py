"""An example of report.json's content: four rows, with strings that need escaping."""

import random

import torch

from eval.config.names import SCORERS
from eval.features.extractors import Extractor
from eval.metrics.context import MetricContext, Reference
from eval.metrics.registry import installed_metrics

UNSAFE = '<script>alert("1")</script> & | `x`'


def row(name: str, method: str, steps: int, latency: float, distance: float, **more) -> dict:
    """A row of report.json; `more` replaces or adds entries."""
    return {
        "name": name, "method": method, "num_steps": steps, "solver": None, "nfe": 2.0 * steps, "latency_ms": latency,
        "latency_ms_p5": latency * 0.9, "latency_ms_p95": latency * 1.1, "images_per_second": 1234.5 / steps,
        "peak_memory_mb": 612.34, "prompt_agreement": 0.934, "samples": 2000, "speedup": 412.3 / latency,
        "frechet_distance": distance, "frechet_ratio": distance / 2.93, "precision": 0.91,
        "recall": 0.8, "density": 1.03, "coverage": 0.7, "real_images": 2000, "training": None, "seed": 0, "kid": None,
        "frechet_interval": [distance * 0.9, distance * 1.1], "frechet_ratio_interval": None, "best": False,
        "prompt_agreement_interval": [0.92, 0.95], "diversity_lpips": 0.31, "lpips_to_teacher": None,
        "psnr_to_teacher": None, "denoiser_ms": latency * 0.8, "decoder_ms": 1.5, "load_seconds": 0.43,
        "joules_per_image": None, "latency_compiled_ms": None,
        "throughput": [{"batch_size": 1, "images_per_second": 61.7}, {"batch_size": 32, "images_per_second": 1234.5}],
        "clip_score": 31.4159, "clip_interval": [31.1, 31.7], "clip_best": method == "dmd",
        "call": {},
        "pipeline": method, "from_cache": False,
    } | more  # fmt: skip


def example_metrics() -> list[dict]:
    """The descriptions of all installed metrics that need no model, and of a substitute for `clip_score`."""
    pocket = Extractor("pocket", lambda images: images.flatten(1))
    reference = Reference(torch.zeros(64), torch.eye(64), torch.zeros(2000, 64))
    context = MetricContext(2000, 0, torch.device("cpu"), pocket, 64, reference=reference)
    models = {"clip_score", *SCORERS}
    described = [metric for metric in installed_metrics().of("image").classes if metric.key not in models]
    clip = {
        "key": "clip_score",
        "heading": "CLIP-ViT-B/16@2000",
        "help": "CLIP.",
        "higher_is_better": True,
        "format": "",
    }
    clip |= {"scale": 1, "summary": True, "interval": "clip_interval", "best": "clip_best", "ratio": None}
    return [*(metric(context).describe() for metric in described), clip]


def example_report() -> dict:
    """A report of two teacher rows and one row of each of two runs."""
    cost = {"steps": 12345, "seconds": 210.5, "device": "cpu"}
    return {
        "date": "2026-01-01T00:00:00+00:00",
        "command": "python -m eval " + UNSAFE,
        "teacher": {"path": "pocket", "call": {"num_inference_steps": 50}},
        "runs": [
            {"name": UNSAFE, "method": "dmd", "folder": "dmd"},
            {"name": "plain-name", "method": "scm", "folder": "my|plug-in"},
        ],
        "baseline": "teacher, 50 steps",
        "clip": {"source": "some/clip", "figure": "CLIP-ViT-B/16@2000"},
        "curves": [
            {
                "figure": "Held-out Frechet distance",
                "run": UNSAFE,
                "method": "dmd",
                "seconds": [0.0, 60.0, 120.5],
                "values": [50.0, 3.0, 0.77777],
            },
            {"figure": "Tangent's norm", "run": UNSAFE, "method": "scm", "seconds": [0.0, 1.0], "values": [1.0, 1.0]},
        ],
        "samples": 2000,
        "batch_size": 32,
        "seed": 0,
        "features": "pocket",
        "reference": "pocket",
        "prompts": {"source": "pocket", "first": [UNSAFE, "a bag", "an ankle boot of considerable length " * 5]},
        "frechet_column": "Frechet distance (pocket@2000)",
        "memory_column": "Peak MB (process)",
        "machine": {"device": "cpu", "cpu": UNSAFE, "precision": "float32"},
        "notes": [UNSAFE],
        "metrics": example_metrics(),
        "rows": [
            row("teacher, 50 steps", "teacher", 50, 412.3, 2.93, best=True),
            row("teacher, DPM-Solver++, 1 step", "teacher", 1, 17.1, 214.2, solver="DPM-Solver++"),
            row(f"{UNSAFE}, 1 step", "dmd", 1, 13.4, 5.36, training=cost, frechet_ratio_interval=[0.9, 2.7]),
            row(
                "plain-name, 2 steps",
                "my|plug-in",
                2,
                20.2,
                6.41234567,
                training=cost,
                prompt_agreement=None,
                prompt_agreement_interval=None,
                psnr_to_teacher=21.5,
                lpips_to_teacher=0.21,
            ),
        ],
    }


def crowded_rows(count: int, seed: int) -> list[dict]:
    """Rows of a comparison of many similar students: most are within a factor of two in latency and distance."""
    rng = random.Random(seed)
    many = [row("teacher, 50 steps", "teacher", 50, 290.0, 0.48), row("teacher, 1 step", "teacher", 1, 9.3, 7.6)]
    for i in range(count - 2):
        name = f"{rng.choice(('pocket', 'a-run-with-a-long-name', 'x'))}-{i}, {1 + i % 2} steps"
        many.append(row(name, rng.choice(("dmd", "scm", "rcm")), 1, rng.uniform(7, 15), rng.uniform(0.35, 0.7)))
    return many
