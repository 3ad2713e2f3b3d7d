"""AdamW: bitwise PyTorch's own; with 8-bit moments close to it; both skip steps and resume bitwise."""

import sys

import pytest
import torch
from safetensors.torch import load_file

from distill.config.recipe import load
from distill.config.sections import OptimizerRecipe
from distill.train import train
from distill.training import checkpoint
from distill.training.optimizers import (
    CACHED_LIMIT,
    MIN_8BIT_SIZE,
    CachedAdamW,
    adamw,
    changed_rate,
    moment_bytes,
    set_learning_rate,
)


def parameters():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(128, 64)), torch.nn.Parameter(torch.randn(64))]


def step(optimizer, given, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in given:
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize(
    ("schedule", "steps", "change"),
    [
        ("cosine", 100, None),
        ("cosine", 101, None),
        ("cosine", 200, "from 2.47e-06 to 0.00508"),
        ("constant", 200, None),
    ],
)
def test_a_cosine_that_became_longer_is_said(schedule, steps, change):
    rate = OptimizerRecipe(lr=0.01, schedule=schedule, warmup=20)
    for reached, length in ((10, 100), (100, 100)):
        optimizer = adamw(parameters(), rate)
        set_learning_rate(optimizer, rate, reached - 1, length)
        assert changed_rate(optimizer, rate, reached, length) is None
    assert changed_rate(optimizer, rate, 100, steps) == change


@pytest.mark.parametrize("cached_limit", [CACHED_LIMIT, 1])
def test_steps_are_bitwise_pytorchs_own(cached_limit):
    """With missing gradients, skipped steps, changing learning rates, and a state that is saved and loaded."""
    ours, theirs = parameters(), parameters()
    rate = OptimizerRecipe(lr=1e-2, weight_decay=0.1)
    settings = {"lr": rate.lr, "betas": rate.betas, "eps": rate.eps, "weight_decay": rate.weight_decay}

    def optimizers():
        return [adamw(ours, rate, cached_limit=cached_limit), torch.optim.AdamW(theirs, **settings, fused=True)]

    pair = optimizers()
    cached_steps = 0
    for seed in range(12):
        if seed == 8:  # load the states into new optimizers
            states = [optimizer.state_dict() for optimizer in pair]
            counts = [state["step"].data_ptr() for state in states[0]["state"].values()]
            assert len(set(counts)) == len(counts)  # checkpoints need separate step counts
            pair = optimizers()
            for optimizer, state in zip(pair, states, strict=True):
                optimizer.load_state_dict(state)
        for optimizer, given in zip(pair, (ours, theirs), strict=True):
            optimizer.found_inf = torch.tensor(float(seed == 3))
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + seed)
            generator = torch.Generator().manual_seed(seed)
            for number, p in enumerate(given):
                p.grad = None if seed in (5, 10) and number else torch.randn(p.shape, generator=generator)
            optimizer.step()
        cached_steps += isinstance(pair[0], CachedAdamW) and pair[0].is_cached
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), seed
        for a, b in zip(ours, theirs, strict=True):
            one, two = (optimizer.state[p] for optimizer, p in zip(pair, (a, b), strict=True))
            assert all(torch.equal(one[key], two[key]) for key in two), seed
    # Not cached: the first step, the first after loading, and those with a missing gradient.
    assert cached_steps == (9 if cached_limit == CACHED_LIMIT else 0)


def test_the_cached_step_is_used_for_small_networks_only():
    rate, given = OptimizerRecipe(), parameters()
    size = sum(p.numel() for p in given)
    assert type(adamw(given, rate, cached_limit=size + 1)) is CachedAdamW
    assert type(adamw(given, rate, cached_limit=size)) is torch.optim.AdamW
    assert CACHED_LIMIT == 10**8


def test_eight_bit_steps_are_close_and_their_moments_a_quarter():
    ends = {}
    for eight_bit in (False, True):
        given = parameters()
        optimizer = adamw(given, OptimizerRecipe(lr=1e-2), eight_bit)
        for seed in range(20):
            step(optimizer, given, seed)
        ends[eight_bit] = given
        for p in given:
            tensors = [value for value in optimizer.state[p].values() if isinstance(value, torch.Tensor)]
            # Neither the quantisation tables of 256 levels, which all tensors share, nor step counts are moments.
            size = sum(value.nbytes for value in tensors if value.numel() not in (1, 256))
            assert size == moment_bytes(p, eight_bit)
    moved = [torch.dist(end, start).item() for end, start in zip(ends[False], parameters(), strict=True)]
    apart = [torch.dist(a, b).item() for a, b in zip(*ends.values(), strict=True)]
    assert parameters()[0].numel() >= MIN_8BIT_SIZE > parameters()[1].numel()
    assert 0 < apart[0] < 0.1 * moved[0]  # rounded moments
    assert apart[1] < 1e-5 * moved[1]  # below the size from which moments are rounded
    assert moment_bytes(parameters()[0], True) < 0.26 * moment_bytes(parameters()[0], False)


def test_skipped_eight_bit_step_changes_nothing():
    given = parameters()
    optimizer = adamw(given, OptimizerRecipe(lr=1e-2), eight_bit=True)
    step(optimizer, given, 0)
    before = [p.detach().clone() for p in given]
    optimizer.found_inf = torch.ones(())
    step(optimizer, given, 1)
    assert all(torch.equal(p, old) for p, old in zip(given, before, strict=True))
    optimizer.found_inf = torch.zeros(())
    step(optimizer, given, 1)
    assert not torch.equal(given[0], before[0])


@pytest.mark.slow
def test_eight_bit_run_resumes_bitwise_but_not_with_other_moments(text_pipeline, tmp_path):
    file = tmp_path / "a.yaml"
    (tmp_path / "prompts.txt").write_text("a coat\na bag\n")
    file.write_text(
        f"name: whole\noutput: {tmp_path}\nteacher: {{path: {text_pipeline}, guidance: 2.0}}\nmethod: {{name: dmd}}\n"
        f"data: {{prompts: {tmp_path / 'prompts.txt'}}}\nmemory: {{eight_bit: true}}\n"
        "train: {steps: 4, batch_size: 2, checkpoint_every: 2, evaluate_every: 0, evaluate_samples: 2,\n"
        "  evaluate_teacher_steps: 1, tracker: none}\n"
    )
    train(load(file))
    train(load(file, ["name=parts", "train.steps=2"]))
    train(load(file, ["name=parts"]))
    ends = [load_file(tmp_path / name / "checkpoints/00000004" / checkpoint.WEIGHTS) for name in ("whole", "parts")]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    with pytest.raises(ValueError, match="another recipe"):
        train(load(file, ["name=parts", "train.steps=6", "memory.eight_bit=false"]))


def test_missing_bitsandbytes_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ValueError, match="needs bitsandbytes: pip install"):
        adamw(parameters(), OptimizerRecipe(), eight_bit=True)
