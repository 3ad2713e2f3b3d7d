"""The condition of a teacher's network against that of the stock pipeline."""

import math

import torch
from torch import Tensor

from distill.checks.stock import Inputs, StockRun, device_of, first_sample, joined, network_inputs, whole_mask
from distill.checks.table import Check, left_out
from distill.exporting.recording import SAMPLES
from distill.exporting.verify import TOLERANCE
from teachers.core.denoiser import Condition
from teachers.core.teacher import Teacher


def condition_checks(run: StockRun, teacher: Teacher, cond: Condition, guidance: float) -> list[Check]:
    """What the teacher passes to its network apart from samples and timesteps, against what the pipeline passes."""
    (ours, rows), theirs = teacher_inputs(teacher, cond, guidance), run.inputs
    if not ours:
        return [left_out("condition", "the network takes none")]
    absent = [
        key for key in ours if key.endswith("_mask") and key.removesuffix("_mask") in theirs and key not in theirs
    ]
    theirs = theirs | {key: whole_mask(theirs, key) for key in absent}
    if missing := sorted(set(ours) - set(theirs)):
        note = f"the pipeline does not pass {', '.join(missing)} to its network"
        return [Check("condition", math.nan, TOLERANCE, note)]
    theirs = {key: theirs[key] for key in ours}
    if rows == SAMPLES:
        return [Check("condition", _gap(ours, theirs), TOLERANCE)]
    count = rows // SAMPLES  # with the condition, and once or twice without parts of it
    (first, *null), parts = _parts(ours, count), _parts(theirs, count)
    orders = [  # pipelines pass the condition first or last
        (_gap(first, one), max(map(_gap, null, others))) for one, *others in (parts, [parts[-1], *parts[:-1]])
    ]
    with_prompt, without = min(orders, key=lambda pair: (math.isnan(sum(pair)), sum(pair)))
    return [Check("condition", with_prompt, TOLERANCE), Check("null condition", without, TOLERANCE)]


def teacher_inputs(teacher: Teacher, cond: Condition, guidance: float) -> tuple[Inputs, int]:
    """What the teacher's network receives apart from samples and timesteps, by names of its arguments, and its rows."""
    calls = []
    with network_inputs([teacher.denoiser.network], lambda: 0) as recorded, torch.no_grad():
        for seed, t in enumerate((0.5, 1.1)):
            x = torch.randn(SAMPLES, *teacher.shape, generator=torch.Generator().manual_seed(seed)).to(
                device_of(teacher)
            )
            before = len(recorded)
            teacher.velocity(x, torch.full((SAMPLES,), t, device=x.device), cond, guidance)
            calls.append(joined([inputs for _, inputs in recorded[before:]]))
    # Complex values are positions, of which a pipeline may pass more than the sample has; the steps compare them.
    same = {key: x for key, x in calls[0].items() if torch.equal(x, calls[1][key]) and not x.is_complex()}
    return same, len(first_sample(calls[0]))


def _parts(inputs: Inputs, count: int) -> list[Inputs]:
    """The inputs of a batch of `count` evaluations of each sample, one by one."""
    rows = count * SAMPLES  # along the second dimension where a network takes the outputs of several layers first
    axes = {key: value.shape.index(rows) if rows in value.shape else 0 for key, value in inputs.items() if value.ndim}
    chunks = {key: inputs[key].chunk(count, axis) for key, axis in axes.items()}
    return [{key: parts[min(i, len(parts) - 1)] for key, parts in chunks.items()} for i in range(count)]


def _gap(ours: Inputs, theirs: Inputs) -> float:
    ours, theirs = _without_padding(ours, theirs)
    if any(ours[key].shape != theirs[key].shape for key in ours):
        return math.nan
    return max((ours[key].float() - theirs[key].to(ours[key].device).float()).abs().max().item() for key in ours)


def _without_padding(ours: Inputs, theirs: Inputs) -> tuple[Inputs, Inputs]:
    """Inputs of equal length, with zeros where the networks' masks say that a token is padding."""
    masks = [key for key, value in ours.items() if "mask" in key and value.ndim == 2 and _is_binary(value)]
    ours, theirs = dict(ours), dict(theirs)
    for mask in masks:
        rows, length = ours[mask].shape
        common = min(length, theirs[mask].shape[-1])
        if ours[mask][:, common:].any() or theirs[mask][:, common:].any():
            continue
        keep = ours[mask][:, :common]
        for key, value in ours.items():
            if key not in masks and value.ndim == 3 and value.shape[:2] == (rows, length):
                ours[key] = value[:, :common] * keep[..., None].to(value)
                theirs[key] = theirs[key][:, :common] * keep[..., None].to(theirs[key])
        ours[mask], theirs[mask] = keep, theirs[mask][:, :common]
    return ours, theirs


def _is_binary(mask: Tensor) -> bool:
    return bool(((mask == 0) | (mask == 1)).all())
