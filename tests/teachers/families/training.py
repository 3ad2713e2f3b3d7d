"""Batches and optimizer steps for distilling tiny teachers."""

import itertools
from collections.abc import Iterable

import torch

from distill.data.batch import Batch
from distill.data.batch_random import BatchRandom
from tests.teachers.families import media, stock

EXPERTS = "Wan 2.2 A14B"  # steps of its two transformers may call only one of them; they have no GAN
SHARE = {EXPERTS: 0.2}
# Of a base with adapters, in turn: CPUs without instructions for half precision take about eight times as long in it.
PRECISIONS = (torch.bfloat16, torch.float32, torch.float32)


def with_precisions(cases: Iterable[tuple]) -> list[tuple]:
    """Cases with one of `PRECISIONS` each, in turn."""
    return [(*case, precision) for case, precision in zip(cases, itertools.cycle(PRECISIONS), strict=False)]


def batch_of(teacher, name, seed=0):
    prompts = stock.prompts_of(name) if name in stock.NAMES else media.prompts_of(teacher)
    latents = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(seed))
    return Batch(teacher.condition(prompts), BatchRandom((seed,), 0, 2, 2, torch.device("cpu")), latents)


def step(distiller, phase, teacher, name, number=0, share=None):
    """One optimizer step of one phase; more than this share of the weights changes, and all stay finite."""
    share = SHARE.get(name, 0.6) if share is None else share
    parameters = [p for module in distiller.networks()[phase] for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0)
    before = [p.detach().clone() for p in parameters]
    loss, _ = distiller(phase, batch_of(teacher, name, number), number)
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p).all() for p in parameters)
    moved = sum(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert moved > share * len(parameters)


def perturb(module, size=0.02):
    """Change all weights as training does, so that an export of the teacher's weights is noticed."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
