"""The table of `benchmarks.memory`."""

import dataclasses
from typing import Any

from distill.training import memory_plan


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table, in GiB."""
    gib = memory_plan.GIB
    parts = [field.name for field in dataclasses.fields(memory_plan.MemoryPlan)]
    head = [
        "model",
        "method",
        "tier",
        "batch",
        "checkpointing",
        *parts,
        "planned",
        "measured",
        "seconds per step",
        "kernels (waits, busy)",
    ]
    lines = [
        f"| {' | '.join(head)} |",
        "| --- | --- | --- | ---: | --- |" + " ---: |" * (len(parts) + 4),
    ]
    for row in rows:
        plan = row.get("plan", {})
        cells = [f"{plan[part] / gib:.2f}" if part in plan else "–" for part in parts]
        cells.append(f"{row['planned'] / gib:.2f}" if plan else "–")
        ratio = f" ({row['planned'] / row['peak'] - 1:+.1%})" if plan and "peak" in row else ""
        if "peak" in row:
            cells += [f"{row['peak'] / gib:.2f}{ratio}", f"{row['seconds']:.3g}"]
        else:
            cells += [row.get("failed", "–"), "–"]
        busy = (
            f"{row['kernels']} ({row['synchronisations']}, {row['kernel_seconds']:.3g} s)" if "kernels" in row else "–"
        )
        cells.append(busy)
        checkpointing = ("yes" if row["checkpointing"] else "no") + ", compiled" * row.get("compile", False)
        names = [row["model"], row["method"], row["tier"], str(row["batch"]), checkpointing]
        lines.append("| " + " | ".join(names + cells) + " |")
    return "\n".join(lines)


def ratios(rows: list[dict[str, Any]]) -> str:
    """Ratios of planned memory, `lora` to `full`: with each tier's default, then with equal checkpointing."""
    names = ("model", "method", "tier", "batch", "checkpointing")
    planned = {tuple(r[name] for name in names): r["planned"] for r in rows if "planned" in r}
    kinds = {"by default (lora with checkpointing)": (True, False), "without checkpointing": (False, False)}
    lines = []
    for name, (lora, full) in (kinds | {"both with checkpointing": (True, True)}).items():
        for case in dict.fromkeys((r["model"], r["method"], r["batch"]) for r in rows):
            model, method, batch = case
            few, whole = (model, method, "lora", batch, lora), (model, method, "full", batch, full)
            if few in planned and whole in planned:
                ratio = planned[few] / planned[whole]
                lines.append(f"- {model}, {method}, batch {batch}, {name}: lora / full = {ratio:.3f} (plan)")
    return "\n".join(lines)


def report(stored: dict[str, list[dict[str, Any]]]) -> str:
    """memory.md from the contents of memory.json."""
    sections = [f"## {key}\n\n{table(found)}\n\n{ratios(found)}" for key, found in stored.items()]
    return (
        "# Memory\n\n`python -m benchmarks.memory`: full-size networks with random weights, in GiB. The planned columns"
        " are what a run prints before it allocates; the measured column is the peak of an optimizer step in its own "
        "process (in brackets: the plan's deviation from it).\n\n" + "\n\n".join(sections) + "\n"
    )
