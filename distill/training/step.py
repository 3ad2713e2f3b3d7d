"""One step of training, and its random numbers."""

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from distill.config.recipe import Recipe
from distill.data.batch import Batch
from distill.data.batch_random import BatchRandom
from distill.methods.base import Distiller
from distill.methods.contract import check_gradients, phases_of
from distill.training.engine import Engine
from distill.training.metric_log import Metrics
from distill.training.optimizers import set_learning_rate
from distill.training.state import TrainState


def train_step(state: TrainState, batches: Iterator[Batch], engine: Engine, recipe: Recipe) -> Metrics:
    """One training step: every phase of the method in order, then the EMA.

    Args:
        state: The state of the run; changed in place.
        batches: Micro-batches in the order of `batch_rngs`; one is used for each phase and accumulation index.
        engine: Gradient synchronisation, precision, clipping.
        recipe: The recipe; its `train` section is read.

    Returns:
        The metrics by "phase/name": one detached scalar on the device for each micro-batch.
    """
    settings = recipe.train
    metrics: dict[str, list[Tensor]] = defaultdict(list)
    for index, phase in enumerate(phases_of(state.distiller, state.step)):
        optimizer = state.optimizers[phase]
        optimizer.zero_grad(set_to_none=True)  # the losses of other phases may have reached its networks
        set_learning_rate(optimizer, state.rates[phase], state.step, settings.steps)
        losses: list[Tensor] = []
        for i in range(settings.accumulation):
            with engine.micro_batch(state.phases[phase], last=i == settings.accumulation - 1):
                with engine.autocast():
                    loss, details = state.phases[phase](next(batches), state.step)
                # A loss that is not finite has no gradient, so that every process skips the step.
                factor = torch.where(loss.detach().isfinite(), 1 / settings.accumulation, torch.nan)
                engine.accelerator.backward(loss * factor)
            losses.append(loss.detach())
            for key, value in details.items():
                metrics[f"{phase}/{key}"].append(value)
        check_gradients(state.distiller, phase, state.parameters[phase])
        norm = engine.clip(optimizer, state.parameters[phase], settings.max_norm)
        metrics[f"{phase}/gradient_norm"].append(norm)
        state.guard.check(optimizer, phase, index, state.step, norm, torch.stack(losses).sum())
        engine.update(optimizer)
    state.update_emas(engine)
    state.step += 1
    return metrics


def batch_rngs(recipe: Recipe, engine: Engine, distiller: Distiller, start: int) -> Iterator[BatchRandom]:
    """The random numbers of every micro-batch of this process, from step `start` on.

    Every process uses other rows of the global batch, so the numbers do not depend on the number of processes or
    micro-batches.
    """
    settings = recipe.train
    for step in range(start, settings.steps):
        for index in range(len(distiller.phases(step))):
            for i in range(settings.accumulation):
                row = (i * engine.world_size + engine.rank) * engine.local_batch_size
                key = recipe.seed, step, index
                yield BatchRandom(key, row, row + engine.local_batch_size, settings.batch_size, engine.device)
