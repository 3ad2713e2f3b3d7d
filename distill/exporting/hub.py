"""The evaluation in a pipeline's model card, and the upload to the Hugging Face Hub."""

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from distill.exporting.distill_json import EVALUATION_PROMPTS, PROMPTS
from distill.exporting.model_card.front_ends import located
from distill.exporting.source_files import EVALUATION_SOURCES
from eval.pipelines.runs import pipeline_identity
from eval.report.columns import quality, speed
from eval.report.markdown import escape, table
from eval.report.model_index import model_index
from teachers.support.checksums import Damaged, read_sealed_json, write_sealed_json
from teachers.support.files import atomic_write
from teachers.support.locks import hold
from teachers.support.regular import outside_links
from teachers.support.text import cleaned, read_text

CARD = "README.md"
SECTION = "\n## Evaluation\n"
REPORT = "report.json"
EVALUATION = "evaluation.json"  # in the pipeline's folder: the last evaluation of it, for when the report is elsewhere
END = "\n<!-- model: "  # what follows the evaluation
FRONT_MATTER = re.compile(r"---\n(?P<front>.*?\n)?---\n", re.DOTALL)


def find_report(pipeline: Path, report: Path | None) -> dict[str, Any] | None:
    """An evaluation of `pipeline` with the files that it has now.

    Args:
        pipeline: The folder of an exported pipeline.
        report: The folder of a report; None: the newest one in a folder beside the pipeline, beside the run or beside
            the run's parent, whatever its name.

    Returns:
        The contents of `report.json` with the runs of this pipeline only, or None if there is none.

    Raises:
        ValueError: If `report` is given and is damaged, has no evaluation of this pipeline, or one of other contents of
            its files. If the evaluation in the pipeline's folder is damaged.
    """
    run, identity = pipeline.resolve().parent, pipeline_identity(pipeline)
    near = [file for folder in (run, run.parent, run.parent.parent) for file in folder.glob(f"*/{REPORT}")]
    found = []
    for file in [report / REPORT] if report else [pipeline / EVALUATION, *near]:
        try:
            stored = read_sealed_json(file)
            current = [entry for entry in stored["runs"] if entry.get("contents") == identity]
            named = [entry for entry in stored["runs"] if Path(entry["folder"]).resolve() == pipeline.resolve()]
        except Damaged as error:
            if file in near:  # it may be another program's
                continue
            raise ValueError(f"{error}; evaluate the pipeline again with fewstep eval {run}") from error
        except (OSError, KeyError, TypeError, AttributeError):
            continue
        if current:  # the contents count: folders are moved, and stand in a report as they were named
            found.append(stored | {"runs": current[:1]})
        elif named and report:
            raise ValueError(
                f"{file} must be an evaluation of {pipeline} as it is now, but its files have changed; evaluate it "
                f"again with fewstep eval {run}"
            )
    if report and not found:
        raise ValueError(
            f"{report} contains no evaluation of {pipeline}; evaluate it with fewstep eval {run} --out {report}"
        )
    return max(found, key=_time, default=None)


def _time(report: dict[str, Any]) -> float:
    """When a report was made, in seconds; file times change when a folder is copied."""
    try:
        return datetime.fromisoformat(str(report.get("date"))).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def add_evaluation(text: str, report: dict[str, Any] | None) -> str:
    """Add an evaluation to a model card, in its front matter and as tables; an earlier evaluation is replaced.

    Args:
        text: The model card.
        report: The result of `find_report`.

    Returns:
        The new model card.
    """
    found = FRONT_MATTER.match(text)
    try:
        values = yaml.safe_load(found["front"]) if found else {}
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"the front matter of {CARD} is not valid YAML; export the run again") from error
    if not isinstance(values, dict):
        raise ValueError(f"the front matter of {CARD} must hold keys and values; export the run again")
    values, body = cleaned(values), text[found.end() :] if found else text
    values.pop("model-index", None)
    body, _, rest = body.partition(SECTION)
    body, marker, last = body.partition(END) if END in body else (body, *("\n" + rest).partition(END)[1:])
    if report is not None:
        values |= yaml.safe_load(model_index(report))
        own = [row for row in report["rows"] if row["pipeline"] == report["runs"][0]["folder"]]
        shown = [row for row in report["rows"] if row["method"] == "teacher" and not row["solver"]] + own
        tables = ("\n".join(table(columns, {"rows": shown})) for columns in (quality(report), speed(report)))
        seed = escape(str(report["seed"]))
        how = f"{report['samples']:,} samples for each row, seed {seed}, the same prompts and noise"
        body += "\n\n".join(
            [SECTION.rstrip(), *tables, f"{how}; measured {escape(str(report['date']))} by `fewstep eval`.\n"]
        )
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---\n{body}{marker}{last}"


def store_evaluation(pipeline: Path, report: dict[str, Any]) -> None:
    """Keep an evaluation in the folder of its pipeline, so that it is found after the folder was moved."""
    own = {row["pipeline"] for row in report["rows"]} & {entry["folder"] for entry in report["runs"]}
    rows = [row for row in report["rows"] if row["method"] == "teacher" or row["pipeline"] in own]
    kept = {name: value for name, value in report.items() if name != "sha256"}
    write_sealed_json(pipeline / EVALUATION, {**kept, "rows": rows}, concurrent=True)


def push(pipeline: Path, name: str, private: bool, api: Any = None) -> str:
    """Upload a pipeline to the Hugging Face Hub. The model is created if it does not exist.

    Args:
        pipeline: The folder of an exported pipeline. Its files of prompts and source images are not uploaded.
        name: The model, as owner/name.
        private: Create the model as a private one.
        api: The client; None: `HfApi()`.

    Returns:
        The model's URL. The code of the model card then names the model.

    Raises:
        ValueError: If the upload fails, with the reason, or a link in the folder leads to a file outside of it.
    """
    refuse_links(pipeline)
    card = pipeline / CARD
    before = read_text(card) if card.is_file() else None
    try:
        api = HfApi() if api is None else api
        repository = api.create_repo(name, private=private or None, exist_ok=True)
        if before is not None:
            _replace(card, located(before, repository.repo_id))
        with hold(pipeline):
            api.upload_folder(
                repo_id=repository.repo_id,
                folder_path=pipeline,
                ignore_patterns=[PROMPTS, EVALUATION_PROMPTS, f"{EVALUATION_SOURCES}/*"],  # they may be confidential
                commit_message="A few-step student",
            )
        return str(repository)
    except Exception as error:  # the client raises many types
        if before is not None and read_text(card) != before:
            _replace(card, before)
        raise ValueError(_reason(error, name)) from None  # a traceback could show request headers


def _replace(card: Path, text: str) -> None:
    with atomic_write(card, concurrent=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


def refuse_links(pipeline: Path) -> None:
    """Raise ValueError if an upload of `pipeline` would publish a file outside of it, or wait for a special file."""
    if found := outside_links(pipeline):
        raise ValueError(f"{found[0]} is a link out of the folder or a special file; remove it before the upload")


def _reason(error: Exception, name: str) -> str:
    if isinstance(error, HFValidationError):
        return f"a model on the Hub must be named owner/name, got {name!r}"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, LocalTokenNotFoundError) or status in (401, 403):
        return f"you have no permission to write to {name} on the Hub: log in with a write token (hf auth login)"
    text = re.sub(r"hf_\w+", "hf_...", " ".join(str(error).split()))
    if isinstance(error, ConnectionError | httpx.TransportError) or "connect" in text.lower():
        return f"the Hub cannot be reached, so {name} was not uploaded; run the command again with a network connection"
    return f"{name} could not be uploaded to the Hub: {type(error).__name__}: {text[:200]}"
