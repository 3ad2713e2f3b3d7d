"""Activation checkpointing on networks with LoRA adapters."""

import pytest
import torch
from torch import nn

import teachers.networks.checkpointing
from distill.data.batch import Batch
from distill.data.batch_random import BatchRandom
from distill.methods.discriminator import frozen
from distill.methods.dmd import DMD
from distill.methods.dmd_options import DMDOptions
from teachers.families.stable_diffusion import StableDiffusion
from teachers.networks.checkpointing import checkpoint_activations
from tests.teachers.networks.lora import inputs_of, perturb

CPU = torch.device("cpu")


def dmd(teacher, **options):
    torch.manual_seed(0)
    method = DMD(teacher, 2.0, DMDOptions(**options))
    for part in (method.student, method.fake_score):
        perturb(part)
    return method


def gradients(method, latents=None):
    """Gradients of each phase of DMD, with the other networks called between forward and backward."""
    by_phase = {}
    for phase, modules in method.networks().items():
        batch = Batch(inputs_of(method.teacher)[2], BatchRandom(("x", phase), 0, 2, 2, CPU), latents)
        loss, _ = method(phase, batch, 0)
        x, t, cond = inputs_of(method.teacher)
        for other in (method.student, method.fake_score, method.teacher.denoiser):
            other.velocity(x, t, cond).detach()
        loss.backward()
        by_phase[phase] = [p.grad.clone() for m in modules for p in m.parameters() if p.grad is not None]
        assert len(by_phase[phase]) == sum(1 for m in modules for _ in m.parameters())
        method.zero_grad(set_to_none=True)
    return by_phase


@pytest.mark.slow
@pytest.mark.parametrize("features", [None, "fake_score", "teacher"])
@pytest.mark.first_by_default
def test_checkpointing_recomputes_with_the_right_adapter(load, features):
    options = {"gan_weight": 0.5, "discriminator_weight": 0.5, "gan_features": features} if features else {}
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4)) if features else None
    expected = gradients(dmd(load("Stable Diffusion 1.5"), **options), latents)
    teacher = load("Stable Diffusion 1.5")
    checkpoint_activations(teacher.denoiser.network)
    actual = gradients(dmd(teacher, **options), latents)
    for phase, values in expected.items():
        for one, two in zip(actual[phase], values, strict=True):
            assert torch.allclose(one, two, rtol=1e-4, atol=1e-6 * max(1, two.abs().max().item())), phase


@pytest.mark.exhaustive
def test_checkpointing_without_pinned_blocks_uses_the_wrong_adapter(load, monkeypatch):
    monkeypatch.setattr(teachers.networks.checkpointing, "pinned", lambda block, context: block)
    expected = gradients(dmd(load("Stable Diffusion 1.5")))["student"]
    teacher = load("Stable Diffusion 1.5")
    checkpoint_activations(teacher.denoiser.network)
    try:
        actual = gradients(dmd(teacher))["student"]
    except (torch.utils.checkpoint.CheckpointError, AssertionError):
        return  # another number of tensors, or adapters without a gradient
    assert max((one - two).abs().max() for one, two in zip(actual, expected, strict=True)) > 1e-3


@pytest.mark.slow
def test_checkpointing_saves_fewer_activations():
    teacher = StableDiffusion.load("pocket", CPU)
    x, t, cond = inputs_of(teacher)

    def saved_bytes() -> int:
        sizes = {}
        network = teacher.student()
        own = {p.untyped_storage().data_ptr() for p in network.parameters()}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            output = network.velocity(x, t, cond)
        return sum(sizes.values()) + 0 * output.numel()

    without = saved_bytes()
    checkpoint_activations(teacher.denoiser.network)
    assert saved_bytes() < 0.7 * without


@pytest.mark.slow
def test_frozen_parameters_stay_frozen_in_recomputation(load):
    """Features for the discriminator give the fake score no gradient, although backward runs after it is unfrozen."""
    teacher = load("Stable Diffusion 1.5")
    checkpoint_activations(teacher.denoiser.network)
    fake_score = perturb(teacher.student())
    x, t, cond = inputs_of(teacher)
    x.requires_grad_()
    with frozen(fake_score):
        out = fake_score.velocity(x, t, cond)
    out.square().sum().backward()
    assert x.grad.abs().max() > 0
    assert all(p.grad is None and p.requires_grad for p in fake_score.parameters())


def test_network_without_checkpointing_support_raises_an_error():
    with pytest.raises(ValueError, match="Linear does not support activation checkpointing"):
        checkpoint_activations(nn.Linear(2, 2))
    assert not checkpoint_activations(nn.Linear(2, 2), required=False)
