"""The report as one HTML page: nothing is fetched, every string from outside is escaped, light and dark.

Every figure stands in an element with `data-row`, `data-key` and `data-value`, the last being what report.json holds.
"""

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from eval.report.columns import Column, columns, over_teacher, quality, speed
from eval.report.grid import SHARPNESS
from eval.report.markdown import title
from eval.report.scatter import COLOURS, charts, series_of
from eval.report.table import figure, name_of, table
from eval.report.training_charts import charts as training

CARDS = 8  # how many rows have a card at the top


def page(report: dict[str, Any], picture: bytes, size: tuple[int, int], strips: Sequence[tuple[bytes, int]]) -> str:
    """The whole page; `picture` is grid.png and `size` its width and height in pixels. `strips[i]` is a PNG of row i's
    pictures side by side and its width on the page."""
    rows = report["rows"]
    template = Template(Path(__file__).with_name("template.html").read_text(encoding="utf-8"))
    data = base64.b64encode(picture).decode()
    width, height = (side // SHARPNESS for side in size)
    extent = f'width="{width}" height="{height}" style="min-width:{width * 3 // 4}px"'  # smaller, nobody can read it
    described = "Samples of every row of the table, one line a prompt, drawn from the same noise"
    return template.substitute(
        title=escape(title(report)),
        heading=title(report, name_of),
        lead=_lead(report),
        cards=_cards(report),
        grid=f'<img src="data:image/png;base64,{data}" {extent} alt="{described}">',
        against=_against(report) if len(rows) > 1 else "",
        viewer=_viewer(rows, strips),
        curves=training(report["curves"], series_of(rows)),
        quality=table(report, quality(report)),
        speed=table(report, speed(report)),
        meanings=_meanings(columns(report)),
        notes="".join(f'<p class="note">{escape(note)}</p>' for note in report["notes"]),
        machine=_pairs({key.replace("_", " "): value for key, value in report["machine"].items()}),
        protocol=_pairs(
            {
                "samples": report["samples"],
                "batch size": report["batch_size"],
                "seed": report["seed"],
                "features": report["features"],
                "reference": report["reference"] or "the teacher's own samples, other seeds",
                "prompts": report["prompts"]["source"] or "none",
                **_given(report),
                "date": report["date"],
                "taken from earlier runs": ", ".join(r["name"] for r in report["rows"] if r["from_cache"]) or "no rows",
            }
        ),
        command=escape(report["command"]),
    )


def _given(report: dict[str, Any]) -> dict[str, Any]:
    """The entries of the protocol that not every comparison has."""
    teacher, size, clip = report["teacher"], report.get("size"), report.get("clip")
    out = {"protocol": report.get("protocol"), "judged at": size and f"{size} x {size} pixels (middle square, Lanczos)"}
    out |= {"CLIP model": clip and clip["source"], "teacher": teacher and teacher["path"]}
    out |= {"teacher's usual call": teacher and json.dumps(teacher["call"])}
    return {key: value for key, value in out.items() if value is not None}


def _lead(report: dict[str, Any]) -> str:
    machine, usual = report["machine"], report["rows"][0]
    hardware = machine.get("gpu") or machine["cpu"]
    takes = f"The teacher takes {usual['num_steps']} steps,"
    return (
        (takes if usual["method"] == "teacher" else f"{escape(usual['name'])}:")
        + f" {figure(0, 'nfe', report)} network evaluations and {figure(0, 'latency_ms', report)} ms an image on "
        f"{escape(str(hardware))} in {escape(str(machine['precision']))}. "
        f"Its {escape(report['frechet_column'])} is {figure(0, 'frechet_distance', report)}."
    )


def _cards(report: dict[str, Any]) -> str:
    """A card for each of the first rows that are not the teacher's."""
    students = [i for i, row in enumerate(report["rows"]) if row["method"] != "teacher"]
    cards = "".join(_card(i, report) for i in students[:CARDS])
    more = len(students) - CARDS
    rest = f'<p class="more">{more} more row{"s" * (more > 1)} in the tables below.</p>' if more > 0 else ""
    return f'<div class="cards">{cards}</div>{rest}'


def _card(index: int, report: dict[str, Any]) -> str:
    row = report["rows"][index]
    whose = "the teacher's" if over_teacher(report) else "the baseline's"
    base = row["name"] == report["baseline"]
    latency = f"{figure(index, 'latency_ms', report)} ms"
    lines = [
        *([] if base else [f"<b>{latency}</b> an image"]),
        f"Frechet distance <b>{figure(index, 'frechet_distance', report)}</b>",
    ]
    if row["frechet_ratio"] is not None and not base:
        lines[-1] += f", {figure(index, 'frechet_ratio', report)} {whose}{_tie(row)}"
    if row["prompt_agreement"] is not None:
        lines.append(f"<b>{figure(index, 'prompt_agreement', report)}</b> as the prompt asked")
    for i, other in enumerate(report["rows"][1:], start=1):
        if other["method"] == "teacher" and other["num_steps"] == row["num_steps"]:
            steps = f"{row['num_steps']} step" + "s" * (row["num_steps"] != 1)
            lines.append(f"The teacher itself in {steps}: {figure(i, 'frechet_distance', report)}")
    colour = series_of(report["rows"])[row["method"]]
    word = "an image" if base else "faster" if row["speedup"] >= 1 else "as fast"
    big = latency if base else figure(index, "speedup", report)
    items = "".join(f"<li>{line}</li>" for line in lines)
    return (
        f'<article class="card" style="--accent:var(--series-{colour})"><h2>{name_of(row["name"])}</h2>'
        f'<p class="big">{big} <span>{word}</span></p><ul>{items}</ul></article>'
    )


def _tie(row: dict[str, Any]) -> str:
    known = row["frechet_ratio_interval"]
    return " (a tie)" if known is not None and known[0] <= 1 <= known[1] else ""


def _viewer(rows: list[dict[str, Any]], strips: Sequence[tuple[bytes, int]]) -> str:
    """Radio buttons that put one row's pictures in another's place: no script, and the arrow keys flip."""
    buttons, stages, rules = [], [], []
    for i, (png, width) in enumerate(strips):
        checked = " checked" if i == 0 else ""
        buttons.append(f'<input type="radio" name="flip" id="flip-{i}"{checked}>')
        data = base64.b64encode(png).decode()
        stages.append(f'<img class="flip-{i}" src="data:image/png;base64,{data}" width="{width}" alt="">')
        rules.append(f"#flip-{i}:checked~.stage .flip-{i}{{display:block}}")
        rules.append(f"#flip-{i}:checked~.flips label[for=flip-{i}]{{background:var(--ink);color:var(--card)}}")
        rules.append(f"#flip-{i}:focus-visible~.flips label[for=flip-{i}]{{outline:2px solid var(--series-1)}}")
    labels = "".join(f'<label for="flip-{i}">{escape(row["name"])}</label>' for i, row in enumerate(rows))
    return (
        f"<style>{''.join(rules)}</style>{''.join(buttons)}"
        f'<div class="flips">{labels}</div><div class="stage">{"".join(stages)}</div>'
    )


def _against(report: dict[str, Any]) -> str:
    """The section that sets quality against latency."""
    rows = report["rows"]
    methods = {row["method"] for row in rows}
    legend = "".join(
        f'<span><i style="background:var(--series-{colour},{COLOURS[colour]})"></i>{escape(method)}</span>'
        for method, colour in series_of(rows).items()
        if method in methods
    )
    return (
        "<section><h2>Quality against latency</h2><p>The lower left corner is best. The grey line is the Pareto front: "
        "nothing else is both better and faster. Broken lines join the calls of one pipeline.</p>"
        f'<div class="panel"><div class="legend">{legend}</div>{charts(rows, report["frechet_column"])}</div></section>'
    )


def _meanings(shown: list[Column]) -> str:
    return "".join(f"<dt>{escape(c.heading)}</dt><dd>{escape(c.help)}</dd>" for c in shown if c.help)


def _pairs(entries: dict[str, Any]) -> str:
    return "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in entries.items())
