"""The training loop of a stage: AdamW, one cosine, an EMA, and checkpoints from which the same command resumes."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.pocket.stages import cosine
from teachers.support.files import atomic_write

WARMUP = 100  # steps
Model = TypeVar("Model", bound=nn.Module)


def train(
    name: str,
    model: Model,
    loss: Callable[[int], tuple[Tensor, dict[str, float]]],
    steps: int,
    lr: float,
    state: Path,
    ema: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    save_every: int = 200,
) -> Model:
    """Minimise a loss, and resume from `state` if it exists.

    Args:
        name: The label of the progress bar.
        model: The module that trains. It is updated in place.
        loss: The loss of a step and figures for the progress bar. The random numbers of a step must depend on the step
            alone, so that a resumed run draws what an uninterrupted one would draw.
        steps: The number of updates.
        lr: The peak of the learning rate.
        state: The checkpoint, written every `save_every` steps.
        ema: The decay of the exponential moving average of the weights; 0 for none.
        betas: AdamW's.
        weight_decay: AdamW's.
        save_every: Steps between two checkpoints.

    Returns:
        The EMA with the model's buffers, or `model` if `ema` is 0, in eval mode and frozen.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay)
    average = copy.deepcopy(model).requires_grad_(False) if ema else model
    pairs = list(zip(average.parameters(), model.parameters(), strict=True))
    parts = {"model": model, "average": average, "optimizer": optimizer}
    start = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        for key, part in parts.items():
            part.load_state_dict(saved[key])
        start = saved["step"]
    recent: dict[str, float] = {}
    for step in (bar := tqdm(range(start, steps), desc=name, initial=start, total=steps, mininterval=20)):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, steps, lr, WARMUP)
        value, figures = loss(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if ema:
            decay = min(ema, (1 + step) / (10 + step))
            torch._foreach_lerp_([a for a, _ in pairs], [p.detach() for _, p in pairs], 1 - decay)
        for key, figure in figures.items():
            recent[key] = 0.98 * recent.get(key, figure) + 0.02 * figure
        if (step + 1) % 50 == 0:
            bar.set_postfix({key: f"{figure:.4f}" for key, figure in recent.items()})
        if (step + 1) % save_every == 0 or step + 1 == steps:
            with atomic_write(state) as temporary:
                torch.save({key: part.state_dict() for key, part in parts.items()} | {"step": step + 1}, temporary)
    if ema:
        buffers = dict(model.named_buffers())
        for key, buffer in average.named_buffers():
            buffer.copy_(buffers[key])
    return average.eval().requires_grad_(False)
