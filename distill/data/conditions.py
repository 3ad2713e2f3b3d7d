"""Conditions of prompts from a teacher's text encoders, which must be finite."""

from collections.abc import Sequence

import torch
from diffusers.utils import logging as diffusers_log

from teachers.core.denoiser import Condition
from teachers.core.teacher import Teacher
from teachers.support.text import agree, counted, one_line

BATCH = 64  # prompts or samples that are encoded together, at most
TOKENIZED = 1024  # prompts that are tokenized together, at most


def encode_prompts(teacher: Teacher, prompts: Sequence[str]) -> Condition:
    """The conditions of prompts, one row for each.

    Raises:
        ValueError: If one is not finite.
    """
    level = diffusers_log.get_verbosity()
    diffusers_log.set_verbosity_error()  # it would print a warning for every truncated prompt
    parts = [dict(teacher.condition(prompts[i : i + BATCH])) for i in range(0, len(prompts), BATCH)]
    diffusers_log.set_verbosity(level)
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if wrong := non_finite_rows(rows):
        raise _not_finite(teacher, f"the caption {prompts[wrong[0]][:80]!r} (of {len(wrong)})")
    return rows


def cut_prompts(teacher: Teacher, prompts: Sequence[str]) -> str | None:
    """A warning about prompts that are longer than the text encoder's limit; None without any, or if it is unknown.

    Call it while the text encoders are loaded.
    """
    limit = teacher.prompt_limit() if prompts else None
    if limit is None:
        return None
    tokenizer, most = limit
    found = []
    for i in range(0, len(prompts), TOKENIZED):
        part = list(prompts[i : i + TOKENIZED])
        rows = tokenizer(part, truncation=False, verbose=False)["input_ids"]
        found += [prompt for prompt, tokens in zip(part, rows, strict=True) if len(tokens) > most]
    if not found:
        return None
    predicate = agree(len(found), f"are longer than the text encoder's {most} tokens and are cut")
    return (
        f'warning: {len(found):,} of {counted(len(prompts), "prompt")} {predicate}, such as "{one_line(found[0], 80)}"'
    )


def encode_unguided(teacher: Teacher) -> Condition:
    """The condition of guidance's second evaluation, one row.

    Raises:
        ValueError: If it is not finite.
    """
    condition = teacher.encode_unguided()
    if non_finite_rows(condition):
        raise _not_finite(teacher, "the empty or the negative prompt")
    return condition


def _not_finite(teacher: Teacher, prompt: str) -> ValueError:
    return ValueError(
        f"the text encoder gives NaN or infinite values for {prompt}; set teacher.precision to float32 or bfloat16, "
        f"got {precision_of(teacher)}"
    )


def non_finite_rows(rows: Condition) -> list[int]:
    """The indices of the rows of tensors (B, ...) that contain NaN or infinite values."""
    floating = [value.flatten(1) for value in rows.values() if value.is_floating_point() and value.numel()]
    finite = [value.isfinite().all(1).cpu() for value in floating]
    return torch.stack(finite).all(0).logical_not().nonzero().flatten().tolist() if finite else []


def precision_of(teacher: Teacher) -> str:
    """The precision that the teacher was loaded in, as `teacher.precision` has it."""
    return str(teacher.origin[1] if teacher.origin else torch.float32).removeprefix("torch.")
