"""Samples at their own size beside the report: the first ones of every row, not selected, with their seeds.

Images are lossless PNG files in `images/`, clips animated WebP files in `clips/`, sounds WAV files in `sounds/`. There
is one folder for each row, and `samples.csv` has the prompt and the seeds of each sample.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from eval.pipelines.seeds import LATENTS, NOISE, sample_seed
from eval.report.csv_table import plain_cell
from teachers.media import Medium
from teachers.support.files import atomic_write

ENDINGS = {"image/png": "png", "image/webp": "webp", "audio/wav": "wav"}
STREAM = "samples"  # the random stream of a row's samples (`eval.pipelines.jobs.Job.stream`)


def gallery(report: Mapping[str, Any], samples: Sequence[Tensor], medium: Medium) -> dict[str, Any]:
    """What report.json says about the samples beside it.

    Args:
        report: The contents of report.json.
        samples: For each row, its first samples (K, *medium.shape) in the judged range.
        medium: What they are.

    Returns:
        "folder": its name; "rows": the folder of each row in it; "ending": that of all files; "samples": for each
        sample its number, prompt and seeds. The file of sample N is FOLDER/ROW/NNN.ENDING.
    """
    prompts = report["prompts"].get("shown") or report["prompts"]["first"] or []
    known = [
        {
            "number": i,
            "prompt": prompts[i] if i < len(prompts) else None,
            "latents_seed": sample_seed(i, report["seed"], f"{STREAM}/{LATENTS}"),
            "generator_seed": sample_seed(i, report["seed"], f"{STREAM}/{NOISE}"),
        }
        for i in range(min(map(len, samples), default=0))
    ]
    rows = [_slug(number, row["name"]) for number, row in enumerate(report["rows"], start=1)]
    ending = ENDINGS[medium.playable(samples[0][:1])[0].mime]
    return {"folder": medium.plural, "rows": rows, "ending": ending, "samples": known}


def sample_file(found: Mapping[str, Any], row: int, number: int) -> str:
    """The path of a sample, relative to the report.

    Args:
        found: The `gallery` of report.json.
        row: The index of its row.
        number: Its number.
    """
    return f"{found['folder']}/{found['rows'][row]}/{number:03}.{found['ending']}"


def write_gallery(found: Mapping[str, Any], samples: Sequence[Tensor], out: Path, medium: Medium) -> None:
    """Write the folder of samples, which replaces that of an earlier report.

    Args:
        found: The `gallery` of report.json.
        samples: For each row, its first samples in the judged range.
        out: The report's folder.
        medium: What they are.
    """
    with atomic_write(out / found["folder"]) as temporary:
        for row, name in enumerate(found["rows"]):
            (temporary / name).mkdir(parents=True)
            for entry in found["samples"]:
                number = entry["number"]
                (playable,) = medium.playable(samples[row][number : number + 1])
                (temporary / name / f"{number:03}.{found['ending']}").write_bytes(playable.data)
        (temporary / "samples.csv").write_text(_table(found), encoding="utf-8")


def _table(found: Mapping[str, Any]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["number", "prompt", "latents_seed", "generator_seed"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: plain_cell(value) for key, value in entry.items()} for entry in found["samples"])
    return stream.getvalue()


def _slug(number: int, name: str) -> str:
    """A folder's name of safe characters, such as "03-pocket-dmd-1-step"."""
    return f"{number:02}-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')[:48]}".strip("-")
