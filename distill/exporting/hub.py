"""The evaluation in a pipeline's model card, and the upload to the Hugging Face Hub."""

import re
from pathlib import Path
from typing import Any

import httpx
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from distill.exporting.pipeline import EVALUATION_PROMPTS, PROMPTS
from eval.pipelines.runs import pipeline_identity
from eval.report.columns import quality, speed
from eval.report.markdown import escape, table
from eval.report.model_index import model_index
from teachers.support.checksums import Damaged, read_json
from teachers.support.locks import hold
from teachers.support.regular import outside_links
from teachers.support.text import cleaned

CARD = "README.md"
SECTION = "\n## Evaluation\n"
FRONT_MATTER = re.compile(r"---\n(?P<front>.*?\n)?---\n", re.DOTALL)


def find_report(pipeline: Path, report: Path | None) -> dict[str, Any] | None:
    """An evaluation of `pipeline` with the files that it has now.

    Args:
        pipeline: The folder of an exported pipeline.
        report: The folder of a report; None: search in the run and in the folders above it.

    Returns:
        The contents of `report.json` with the runs of this pipeline only, or None if there is none.

    Raises:
        ValueError: If a report is damaged, or `report` is given and has no evaluation of this pipeline, or one of other
            contents of its files.
    """
    run = pipeline.parent
    folders = [report] if report else [run / "report", run.parent / "report", run.parent.parent / "report"]
    for folder in folders:
        file = folder / "report.json"
        try:
            stored = read_json(file)
            runs = [entry for entry in stored["runs"] if Path(entry["folder"]).resolve() == pipeline.resolve()]
        except Damaged as error:
            raise ValueError(f"{error}; evaluate the pipeline again with fewstep eval {run}") from error
        except (OSError, KeyError, TypeError):
            continue
        current = runs and all(entry.get("contents") == pipeline_identity(pipeline) for entry in runs)
        if current:
            return stored | {"runs": runs}
        if runs and report:
            raise ValueError(
                f"{file} must be an evaluation of {pipeline} as it is now, but its files have changed; evaluate it "
                f"again with fewstep eval {run}"
            )
    if report:
        raise ValueError(
            f"{report} contains no evaluation of {pipeline}; evaluate it with fewstep eval {run} --out {report}"
        )
    return None


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
    body = body.split(SECTION)[0]
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
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---\n{body}"


def push(pipeline: Path, name: str, private: bool) -> str:
    """Upload a pipeline to the Hugging Face Hub. The model is created if it does not exist.

    Args:
        pipeline: The folder of an exported pipeline. Its files of prompts are not uploaded.
        name: The model, as owner/name.
        private: Create the model as a private one.

    Returns:
        The model's URL.

    Raises:
        ValueError: If the upload fails, with the reason, or a link in the folder leads to a file outside of it.
    """
    refuse_links(pipeline)
    try:
        api = HfApi()
        repository = api.create_repo(name, private=private or None, exist_ok=True)
        with hold(pipeline):
            api.upload_folder(
                repo_id=repository.repo_id,
                folder_path=pipeline,
                ignore_patterns=[PROMPTS, EVALUATION_PROMPTS],  # they may be confidential
                commit_message="A few-step student",
            )
        return str(repository)
    except Exception as error:  # the client raises many types
        raise ValueError(_reason(error, name)) from None  # a traceback could show request headers


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
