"""The training loop of a stage: AdamW, one cosine, an EMA, and checkpoints from which the same command resumes."""

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.pocket.machine import CPU, Machine
from benchmarks.pocket.updates import Loss, Updates
from teachers.support.files import atomic_write

WARMUP = 100  # steps
READ_EVERY = 50  # steps after which the figures are read, which waits for a GPU
SAVE_SECONDS = 60.0  # between two checkpoints on a GPU
Model = TypeVar("Model", bound=nn.Module)


def train(
    name: str,
    model: Model,
    loss: Loss,
    steps: int,
    lr: float,
    state: Path,
    ema: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    save_every: int = 200,
    seed: int = 0,
    machine: Machine = CPU,
) -> Model:
    """Minimise a loss, and resume from `state` if it exists.

    Args:
        name: The label of the progress bar.
        model: The module that trains. It is updated in place, and moved to the machine's device.
        loss: The loss and figures for the progress bar from a generator on the machine's device. All random numbers of
            a step must be drawn from it: on a CPU it depends on the step alone, so that a resumed run draws what an
            uninterrupted one would draw.
        steps: The number of updates.
        lr: The peak of the learning rate.
        state: The checkpoint, written every `save_every` steps on a CPU and every minute on a GPU. The averaged weights
            are in a file of their own beside it, `average_path(state)`.
        ema: The decay of the exponential moving average of the weights; 0 for none.
        betas: AdamW's.
        weight_decay: AdamW's.
        save_every: Steps between two checkpoints on a CPU.
        seed: Added to the step for the generator's seed.
        machine: The device and its time. At its end the training has ended with a learning rate of zero, also if the
            number of steps is not reached.

    Returns:
        The EMA with the model's buffers, or `model` if `ema` is 0, in eval mode and frozen, on the machine's device.
    """
    model.to(machine.device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = _adamw(parameters, lr, machine, betas=betas, weight_decay=weight_decay)
    average = copy.deepcopy(model).requires_grad_(False) if ema else model
    averaged = dict(average.named_parameters())
    pairs = [(averaged[key], value) for key, value in model.named_parameters() if value.requires_grad]
    step, progress = _resume(state, model, average, optimizer, machine)
    schedule = Schedule(steps, machine.end, progress)
    updates = Updates(loss, optimizer, parameters, machine, seed, step)
    recent: dict[str, Tensor] = {}
    last_saved = time.monotonic()
    bar = tqdm(desc=name, initial=step, total=steps, mininterval=20)
    while (done := schedule.progress(step)) < 1:
        _set_rate(optimizer, lr * min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * done)))
        figures = updates.make(step)
        if ema:
            decay = min(ema, (1 + step) / (10 + step))
            torch._foreach_lerp_([a for a, _ in pairs], [p.detach() for _, p in pairs], 1 - decay)
        for key, figure in figures.items():
            recent[key] = recent[key].lerp_(figure, 0.02) if key in recent else figure.clone()
        step += 1
        bar.update()
        if step % READ_EVERY == 0:
            bar.set_postfix({key: f"{figure.item():.4f}" for key, figure in recent.items()})
        due = time.monotonic() - last_saved >= SAVE_SECONDS if machine.gpu else step % save_every == 0
        if due or step == steps:
            _save(state, model, average, optimizer, step, schedule.progress(step))
            last_saved = time.monotonic()
    bar.close()
    if ema:
        buffers = dict(model.named_buffers())
        for key, buffer in average.named_buffers():
            buffer.copy_(buffers[key])
    return average.eval().requires_grad_(False)


class Schedule:
    """How much of a training is done: by its steps, or by its time if that ends first."""

    def __init__(self, steps: int, end: float | None, progress: float = 0.0, now: Callable[[], float] = time.monotonic):
        self.steps, self.end, self.before, self.now = steps, end, progress, now
        self.begun = now()

    def progress(self, step: int) -> float:
        """The share that is done before a step; 1 at the end."""
        by_steps = step / self.steps if self.steps else 1.0
        if self.end is None:
            return by_steps
        passed = (self.now() - self.begun) / max(self.end - self.begun, 1e-9)
        return min(1.0, max(by_steps, self.before + (1 - self.before) * passed))


def average_path(state: Path) -> Path:
    """The file of the averaged weights of a checkpoint."""
    return state.with_name(f"{state.stem}_average.pt")


def _adamw(parameters: list[nn.Parameter], lr: float, machine: Machine, **options: Any) -> torch.optim.AdamW:
    if not machine.gpu:
        return torch.optim.AdamW(parameters, lr=lr, **options)
    rate = torch.tensor(lr, device=machine.device)  # a CUDA graph reads the rate of each step from memory
    return torch.optim.AdamW(parameters, lr=rate, fused=True, capturable=True, **options)


def _set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def _save(
    state: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, step: int, progress: float
) -> None:
    stored = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "progress": progress}
    for path, value in ((average_path(state), average.state_dict()), (state, stored)):
        with atomic_write(path) as temporary:
            torch.save(value, temporary)


def _resume(
    state: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, machine: Machine
) -> tuple[int, float]:
    """Load a checkpoint if there is one, and return its step and its progress."""
    if not state.exists():
        return 0, 0.0
    saved = torch.load(state, map_location=machine.device, weights_only=True)
    model.load_state_dict(saved["model"])
    if average is not model:
        average.load_state_dict(torch.load(average_path(state), map_location=machine.device, weights_only=True))
    # the options of this device, also if another one wrote the checkpoint
    optimizer.load_state_dict(saved["optimizer"] | {"param_groups": optimizer.state_dict()["param_groups"]})
    return saved["step"], saved["progress"]
