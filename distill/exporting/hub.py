"""A pipeline's model card with its evaluation, and uploading the folder to the Hugging Face Hub."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from distill.exporting.pipeline import PROMPTS
from eval.report.columns import quality, speed
from eval.report.markdown import table
from eval.report.model_index import model_index

CARD = "README.md"
SECTION = "\n## Evaluation\n"


def find_report(pipeline: Path, report: Path | None) -> dict[str, Any] | None:
    """What a report says of `pipeline` alone, or None where none does. Looks in `report`, else beside and in the run.

    ValueError where `report` was asked for and does not hold it, or holds figures of an earlier export.
    """
    run = pipeline.parent
    places = [report] if report else [run / "report", run.parent / "report", run.parent.parent / "report"]
    for place in places:
        file = place / "report.json"
        try:
            stored = json.loads(file.read_text())
            runs = [entry for entry in stored["runs"] if Path(entry["folder"]).resolve() == pipeline.resolve()]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        old = file.stat().st_mtime < (pipeline / "distill.json").stat().st_mtime
        if runs and not old:
            return stored | {"runs": runs}
        if runs and report:
            raise ValueError(f"{file} is older than the pipeline; judge it again with python -m eval {run}")
    if report:
        raise ValueError(f"{report} holds no report on {pipeline}; judge it with python -m eval {run} --out {report}")
    return None


def add_evaluation(text: str, report: dict[str, Any] | None) -> str:
    """The model card `text` with the figures of `report` in its front matter and as tables; without, as it is."""
    _, front, body = text.split("---\n", 2)
    values = yaml.safe_load(front)
    values.pop("model-index", None)
    body = body.split(SECTION)[0]
    if report is not None:
        values |= yaml.safe_load(model_index(report))
        mine = [row for row in report["rows"] if row["pipeline"] == report["runs"][0]["folder"]]
        shown = [row for row in report["rows"] if row["method"] == "teacher" and not row["solver"]] + mine
        tables = ("\n".join(table(columns, {"rows": shown})) for columns in (quality(report), speed(report)))
        how = f"{report['samples']:,} samples a row, seed {report['seed']}, the same prompts and noise for every row"
        body += "\n\n".join([SECTION.rstrip(), *tables, f"{how}; measured {report['date']} by `python -m eval`.\n"])
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---\n{body}"


def push(pipeline: Path, name: str, private: bool) -> str:
    """Upload the folder as the model `name` (made where there is none); its address. ValueError, one sentence."""
    try:
        api = HfApi()
        place = api.create_repo(name, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=place.repo_id,
            folder_path=pipeline,
            ignore_patterns=[PROMPTS],  # whoever trained may not want to publish them
            commit_message="A few-step student",
        )
        return str(place)
    except Exception as error:  # the client raises whatever its many layers do
        raise ValueError(_why(error, name)) from None  # whose trace could show a request's headers


def _why(error: Exception, name: str) -> str:
    if isinstance(error, HFValidationError):
        return f"{name!r} is no name for a model on the hub; write owner/name"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, LocalTokenNotFoundError) or status in (401, 403):
        return f"the hub does not let you write to {name}: log in with a token that may write (hf auth login)"
    text = re.sub(r"hf_\w+", "hf_...", " ".join(str(error).split()))
    if isinstance(error, ConnectionError | httpx.TransportError) or "connect" in text.lower():
        return f"the hub cannot be reached, so {name} was not uploaded; run the same command where there is a network"
    return f"{name} could not be uploaded to the hub: {type(error).__name__}: {text[:200]}"
