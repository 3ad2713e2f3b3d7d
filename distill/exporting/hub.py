"""Exporting a run by hand, and carrying it to the hub with a model card that holds its evaluation.

    python -m distill.export RUN [--push-to-hub NAME [--private]] [--report runs/report]

A finished run has its pipeline already. Of one that was stopped this exports the newest checkpoint; the run can go on
afterwards. Where `python -m eval` has judged the pipeline, its figures go into the card.
"""

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import httpx
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from distill.config.recipe import SAVED, load
from distill.export import PROMPTS
from distill.train import train
from distill.training import checkpoint
from eval.report.columns import quality, speed
from eval.report.markdown import table
from eval.report.model_index import model_index

CARD = "README.md"
SECTION = "\n## Evaluation\n"


def exported(run: Path) -> Path:
    """The pipeline of `run` (or of the pipeline folder that it is), made from the newest checkpoint where need be.

    ValueError, one sentence, where there is nothing to export.
    """
    if (run / "model_index.json").is_file():
        return run
    if not run.is_dir():
        raise ValueError(f"there is no run {run}; name the folder of a run")
    newest = checkpoint.newest_meta(run / "checkpoints")
    record = run / "pipeline" / "distill.json"
    if record.is_file() and (newest is None or json.loads(record.read_text())["cost"]["steps"] >= newest["step"]):
        return record.parent
    if newest is None:
        raise ValueError(f"{run} holds neither a pipeline nor a checkpoint; train first, or name another run")
    if not (run / SAVED).is_file():
        raise ValueError(f"{run} has no {SAVED}, so its checkpoint cannot be exported; run its recipe on to the end")
    recipe, place = load(run / SAVED), run.resolve()
    settings = dataclasses.replace(recipe.train, steps=newest["step"], tracker="none", evaluate_every=0)
    earlier = record.with_suffix(".earlier")
    if record.is_file():
        record.replace(earlier)  # what it belongs to does not count as finished
    try:
        return train(dataclasses.replace(recipe, output=str(place.parent), name=place.name, train=settings))
    except BaseException:
        if earlier.is_file():
            earlier.replace(record)
        raise


def judged(pipeline: Path, report: Path | None) -> dict[str, Any] | None:
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


def card(text: str, report: dict[str, Any] | None) -> str:
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


def command() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m distill.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a run, finished or stopped, or of an exported pipeline")
    parser.add_argument("--push-to-hub", metavar="NAME", help="upload it as this model, such as owner/name")
    parser.add_argument("--private", action="store_true", help="where the model is made: for yourself only")
    parser.add_argument("--report", type=Path, help="the folder of the report on it (default: looked for near the run)")
    args = parser.parse_args()
    pipeline = exported(args.run)
    report, readme = judged(pipeline, args.report), pipeline / CARD
    readme.write_text(card(readme.read_text(), report))
    print(f"the student's pipeline: {pipeline}")
    print("its card holds the report's figures" if report else f"its card holds no figures: python -m eval {args.run}")
    if args.push_to_hub:
        print(f"uploaded without {PROMPTS}: {push(pipeline, args.push_to_hub, args.private)}")
