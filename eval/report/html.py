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

from eval.report.columns import BEST, DETAILS, Column, columns, over_teacher, quality, speed
from eval.report.curves import charts
from eval.report.grid import SHARPNESS
from eval.report.markdown import spread, title
from eval.report.scatter import COLOURS, scatter, series_of


def page(report: dict[str, Any], picture: bytes, size: tuple[int, int], strips: Sequence[tuple[bytes, int]]) -> str:
    """The whole page; `picture` is grid.png and `size` its width and height in pixels. `strips[i]` is a PNG of row i's
    pictures side by side and its width on the page."""
    rows, frechet = report["rows"], report["frechet_column"]
    template = Template(Path(__file__).with_name("template.html").read_text(encoding="utf-8"))
    data = base64.b64encode(picture).decode()
    extent = f'width="{size[0] // SHARPNESS}" height="{size[1] // SHARPNESS}"'
    described = "Samples of every row of the table, one line a prompt, drawn from the same noise"
    return template.substitute(
        title=escape(title(report)),
        heading=_name(title(report)),
        lead=_lead(report),
        cards="".join(_card(i, report) for i, row in enumerate(rows) if row["method"] != "teacher"),
        grid=f'<img src="data:image/png;base64,{data}" {extent} alt="{described}">',
        legend=_legend(rows),
        wide=scatter(rows, frechet, 940, 430),
        narrow=scatter(rows, frechet if len(frechet) < 42 else "Frechet distance", 360, 400),
        viewer=_viewer(rows, strips),
        curves=charts(report["curves"], series_of(rows)),
        quality=_table(report, quality(report)),
        speed=_table(report, speed(report)),
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
    whose = "The teacher" if usual["method"] == "teacher" else escape(usual["name"])
    return (
        f"{whose} takes {usual['num_steps']} steps, {_figure(0, 'nfe', report)} network evaluations and "
        f"{_figure(0, 'latency_ms', report)} ms an image on {escape(str(hardware))} in "
        f"{escape(str(machine['precision']))}. "
        f"Its {escape(report['frechet_column'])} is {_figure(0, 'frechet_distance', report)}."
    )


def _card(index: int, report: dict[str, Any]) -> str:
    row = report["rows"][index]
    whose = "the teacher's" if over_teacher(report) else "the baseline's"
    lines = [
        f"<b>{_figure(index, 'latency_ms', report)} ms</b> an image",
        f"Frechet distance <b>{_figure(index, 'frechet_distance', report)}</b>",
    ]
    if row["frechet_ratio"] is not None:
        lines[-1] += f", {_figure(index, 'frechet_ratio', report)} {whose}{_tie(row)}"
    if row["prompt_agreement"] is not None:
        lines.append(f"<b>{_figure(index, 'prompt_agreement', report)}</b> as the prompt asked")
    for i, other in enumerate(report["rows"][1:], start=1):
        if other["method"] == "teacher" and other["num_steps"] == row["num_steps"]:
            steps = f"{row['num_steps']} step" + "s" * (row["num_steps"] != 1)
            lines.append(f"The teacher itself in {steps}: {_figure(i, 'frechet_distance', report)}")
    colour = series_of(report["rows"])[row["method"]]
    word = "faster" if row["speedup"] >= 1 else "as fast"
    items = "".join(f"<li>{line}</li>" for line in lines)
    return (
        f'<article class="card" style="--accent:var(--series-{colour})"><h2>{_name(row["name"])}</h2>'
        f'<p class="big">{_figure(index, "speedup", report)} <span>{word}</span></p><ul>{items}</ul></article>'
    )


def _figure(index: int, key: str, report: dict[str, Any]) -> str:
    """One figure of row `index`, as text, with the exact value beside it."""
    shown = next(column for column in (*columns(report), *DETAILS.values()) if column.key == key)
    value = report["rows"][index][key]
    return f'<span data-row="{index}" data-key="{key}" data-value="{_exact(value)}">{escape(shown.text(value))}</span>'


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


def _name(name: str) -> str:
    """A name whose parts each stay on one line where they can."""
    parts = name.replace(", ", ",\n").split("\n")
    return " ".join(f'<span class="part">{escape(part)}</span>' for part in parts)


def _exact(value: Any) -> str:
    return escape(json.dumps(value, ensure_ascii=False))


def _table(report: dict[str, Any], shown: list[Column]) -> str:
    head = "".join(f'<th scope="col">{escape(c.heading)}</th>' for c in shown)
    colours, body = series_of(report["rows"]), []
    for i, row in enumerate(report["rows"]):
        dot = f'<i style="background:var(--series-{colours[row["method"]]})"></i>'
        name = f'data-row="{i}" data-key="name" data-value="{_exact(row["name"])}"'
        cells = [f'<th scope="row" {name}>{dot}{_name(row["name"])}</th>']
        for c in shown[1:]:
            inner = _figure(i, c.key, report)
            if c.key == "latency_ms":
                inner += f"<small>{spread(row)}</small>"
            if row.get(BEST.get(c.key, "")):
                inner = f"<b>{inner}</b>"
            if c.key in DETAILS and row.get(DETAILS[c.key].key) is not None:
                inner += f"<small>{_figure(i, DETAILS[c.key].key, report)}</small>"
            cells.append(f'<td class="{"words" if c.key == "training" else "figure"}">{inner}</td>')
        kind = "teacher" if row["method"] == "teacher" else "student"
        body.append(f'<tr class="{kind}">{"".join(cells)}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _legend(rows: list[dict[str, Any]]) -> str:
    return "".join(
        f'<span><i style="background:var(--series-{colour},{COLOURS[colour]})"></i>{escape(method)}</span>'
        for method, colour in series_of(rows).items()
    )


def _meanings(shown: list[Column]) -> str:
    return "".join(f"<dt>{escape(c.heading)}</dt><dd>{escape(c.help)}</dd>" for c in shown if c.help)


def _pairs(entries: dict[str, Any]) -> str:
    return "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in entries.items())
