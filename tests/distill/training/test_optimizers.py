"""AdamW: PyTorch's bit for bit; in 8 bits near that, skipping as it does, its state saved and taken up bit for bit."""

import sys

import pytest
import torch
from safetensors.torch import load_file

from distill.config.recipe import OptimizerRecipe, load
from distill.train import train
from distill.training import checkpoint
from distill.training.optimizers import SMALL, adamw, moments


def parameters():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(128, 64)), torch.nn.Parameter(torch.randn(64))]


def step(optimizer, given, seed):
    draw = torch.Generator().manual_seed(seed)
    for p in given:
        p.grad = torch.randn(p.shape, generator=draw)
    optimizer.step()


def test_steps_are_pytorchs_own_bit_for_bit():
    """Through gradients that are missing, steps that are skipped, a rate that changes, a state saved and taken up."""
    ours, theirs = parameters(), parameters()
    rate = OptimizerRecipe(lr=1e-2, weight_decay=0.1)
    settings = {"lr": rate.lr, "betas": rate.betas, "eps": rate.eps, "weight_decay": rate.weight_decay}
    optimizers = [adamw(ours, rate), torch.optim.AdamW(theirs, **settings, fused=True)]
    remembered = 0
    for seed in range(12):
        if seed == 8:  # taken up by new ones
            states = [optimizer.state_dict() for optimizer in optimizers]
            counts = [state["step"].data_ptr() for state in states[0]["state"].values()]
            assert len(set(counts)) == len(counts)  # as checkpoints want them
            optimizers = [adamw(ours, rate), torch.optim.AdamW(theirs, **settings, fused=True)]
            for optimizer, state in zip(optimizers, states, strict=True):
                optimizer.load_state_dict(state)
        for optimizer, given in zip(optimizers, (ours, theirs), strict=True):
            optimizer.found_inf = torch.tensor(float(seed == 3))
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + seed)
            draw = torch.Generator().manual_seed(seed)
            for number, p in enumerate(given):
                p.grad = None if seed in (5, 10) and number else torch.randn(p.shape, generator=draw)
            optimizer.step()
        remembered += optimizers[0]._known is not None
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), seed
        for a, b in zip(ours, theirs, strict=True):
            one, two = (optimizer.state[p] for optimizer, p in zip(optimizers, (a, b), strict=True))
            assert all(torch.equal(one[key], two[key]) for key in two), seed
    assert remembered == 9  # not at first, after a load, or without a gradient; with counts that differ too


def test_eight_bits_follow_thirty_two_and_hold_a_quarter():
    ends = {}
    for eight_bit in (False, True):
        given = parameters()
        optimizer = adamw(given, OptimizerRecipe(lr=1e-2), eight_bit)
        for seed in range(20):
            step(optimizer, given, seed)
        ends[eight_bit] = given
        for p in given:
            held = [value for value in optimizer.state[p].values() if isinstance(value, torch.Tensor)]
            # Tables of 256 levels are shared by all tensors; a counter of steps is no moment.
            kept = sum(value.nbytes for value in held if value.numel() not in (1, 256))
            assert kept == moments(p, eight_bit)
    moved = [torch.dist(end, start).item() for end, start in zip(ends[False], parameters(), strict=True)]
    apart = [torch.dist(a, b).item() for a, b in zip(*ends.values(), strict=True)]
    assert parameters()[0].numel() >= SMALL > parameters()[1].numel()
    assert 0 < apart[0] < 0.1 * moved[0]  # rounded moments
    assert apart[1] < 1e-5 * moved[1]  # too small to be worth rounding
    assert moments(parameters()[0], True) < 0.26 * moments(parameters()[0], False)


def test_a_step_that_found_infinities_changes_nothing():
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


def test_a_run_in_eight_bits_resumes_bit_for_bit_and_not_in_thirty_two(text_pipeline, tmp_path):
    file = tmp_path / "a.yaml"
    (tmp_path / "prompts.txt").write_text("a coat\na bag\n")
    file.write_text(
        f"name: calm\noutput: {tmp_path}\nteacher: {{path: {text_pipeline}, guidance: 2.0}}\nmethod: {{name: dmd}}\n"
        f"data: {{prompts: {tmp_path / 'prompts.txt'}}}\nmemory: {{eight_bit: true}}\n"
        "train: {steps: 4, batch_size: 2, checkpoint_every: 2, evaluate_every: 0, evaluate_samples: 2,\n"
        "  evaluate_teacher_steps: 1, tracker: none}\n"
    )
    train(load(file))
    train(load(file, ["name=cut", "train.steps=2"]))
    train(load(file, ["name=cut"]))
    ends = [load_file(tmp_path / name / "checkpoints/00000004" / checkpoint.WEIGHTS) for name in ("calm", "cut")]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    with pytest.raises(ValueError, match="another recipe"):
        train(load(file, ["name=cut", "train.steps=6", "memory.eight_bit=false"]))


def test_without_bitsandbytes_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ValueError, match="needs bitsandbytes: pip install"):
        adamw(parameters(), OptimizerRecipe(), eight_bit=True)
