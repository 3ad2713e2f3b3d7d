"""Seconds an image of full-size pipelines with random weights: the guided teacher, and students of one and two steps.

    python -m benchmarks.latency [--models sd15 sdxl] [--batches 1 4 16]

The teacher is the stock pipeline with 50 steps and guidance 7.5, in half precision on a GPU. The student has the
scheduler and the call of an export. A call includes the text encoder, the network and the decoder. Random weights
change no time. Writes latency.json and latency.md to benchmarks/results.
"""

import argparse
import inspect
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from benchmarks.full_size import MODELS, randomise
from benchmarks.support.options import check_counts
from distill.config.registry import TEACHERS, find
from distill.exporting.distill_json import device_name, student_call
from distill.training.meta_device import build_on_meta
from eval.config.options import Timing
from eval.pipelines.latency import PeakMemory, latency, parts

RESULTS = Path(__file__).parent / "results"
STEPS, GUIDANCE = 50, 7.5
SECOND_TIME = 0.4  # radians


def random_pipeline(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The pipeline of a folder of configurations, with small random weights."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    components: dict[str, Any] = {}
    for name, value in index.items():
        if not isinstance(value, list):
            continue
        library = {"diffusers": diffusers, "transformers": transformers}[value[0]]
        kind = getattr(library, value[1])
        if name == "scheduler" or name.startswith("tokenizer"):
            components[name] = kind.from_pretrained(folder / name)
            continue
        with torch.device("meta"):
            if value[0] == "diffusers":
                module = kind.from_config(kind.load_config(folder / name))
            else:
                module = kind(kind.config_class.from_pretrained(folder / name))
        components[name] = randomise(module.to(dtype).to_empty(device=device)).eval()
    kind = getattr(diffusers, index["_class_name"])
    parameters = inspect.signature(kind).parameters.values()
    absent = {p.name: None for p in parameters if p.default is p.empty and p.name not in components}  # safety checker
    pipe = kind(**components, **absent)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def measure(model: str, batches: list[int], device: torch.device, dtype: torch.dtype, seconds: float) -> list[Any]:
    """Rows of one model: milliseconds a call, milliseconds of its network and decoder, and peak memory."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        MODELS[model][1](folder)
        teacher = build_on_meta(find(TEACHERS, MODELS[model][0]), name, dtype)
        pipe = random_pipeline(folder, device, dtype)
        stock = pipe.scheduler
        student = teacher.student()
        end = student.path.t_max
        calls: dict[str, Any] = {f"teacher, {STEPS} steps": (stock, {"num_inference_steps": STEPS})}
        for wanted in ([end], [end, SECOND_TIME]):
            times = teacher.native_times(student, wanted)
            scheduler = teacher.consistency_export(student, times)[0]  # type: ignore[attr-defined]
            kind = f"student, {len(times)} step" + "s" * (len(times) > 1)
            calls[kind] = scheduler, student_call(teacher, student, times)
        for batch in batches:
            for kind, (pipe.scheduler, options) in calls.items():
                prompts = ["a photograph"] * batch
                sample = partial(pipe, prompts, **{"guidance_scale": GUIDANCE, "output_type": "pt"} | options)
                with PeakMemory(device) as peak:
                    measured = latency(sample, device, Timing(repeats=20, min_repeats=1, seconds=seconds))
                row = {"model": model, "batch": batch, "sampler": kind, "ms": measured.median, "p5": measured.p5}
                row |= {"p95": measured.p95, "repeats": measured.repeats, "peak_mb": peak.megabytes}
                row |= parts(pipe, sample, device, 1)
                print(json.dumps(row), flush=True)
                rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    lines = [
        "| model | batch | sampler | ms a call | ms an image | network, ms | decoder, ms | times as fast | peak, GiB |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        slow = next(
            r
            for r in rows
            if r["sampler"].startswith("teacher") and (r["model"], r["batch"]) == (row["model"], row["batch"])
        )
        spread = f"{row['ms']:.1f} ({row['p5']:.1f} to {row['p95']:.1f}, {row['repeats']} calls)"
        lines.append(
            f"| {row['model']} | {row['batch']} | {row['sampler']} | {spread} | {row['ms'] / row['batch']:.1f} | "
            f"{row['denoiser_ms']:.1f} | {row['decoder_ms']:.1f} | {slow['ms'] / row['ms']:.1f} | "
            f"{row['peak_mb'] / 1024:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["sd15", "sdxl"], choices=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=3.0, help="of repeated calls of one kind (default: 3)")
    args = parser.parse_args()
    check_counts(parser, args)
    cuda = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if cuda else "cpu"), torch.float16 if cuda else torch.float32
    rows = [row for model in args.models for row in measure(model, args.batches, device, dtype, args.seconds)]
    precision = str(dtype).removeprefix("torch.")
    machine = f"{device_name(device)}, {precision}, torch {torch.__version__}, diffusers {diffusers.__version__}"
    path = RESULTS / "latency.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    stored[machine] = [row for row in stored.get(machine, []) if row["model"] not in args.models] + rows
    write(stored)
    print((RESULTS / "latency.md").read_text(encoding="utf-8"))


def write(stored: dict[str, list[dict[str, Any]]]) -> None:
    """Write latency.json and latency.md: rows by machine."""
    (RESULTS / "latency.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    sections = [f"## {key}\n\n{table(found)}\n" for key, found in stored.items()]
    text = "# Latency\n\n`python -m benchmarks.latency`: full-size pipelines with random weights, from a prompt to a "
    text += "tensor of\nimages. The teacher has guidance 7.5 (two network rows an image). In brackets: 5th and 95th "
    text += "percentile.\n\n"
    (RESULTS / "latency.md").write_text(text + "\n".join(sections), encoding="utf-8")


if __name__ == "__main__":
    main()
