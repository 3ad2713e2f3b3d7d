"""A quantized base with adapters, on the real architecture of every family."""

import pytest
import torch

from distill.config.registry import TEACHERS, find
from distill.methods.jvp import jvp
from teachers.core.denoiser import Denoiser
from teachers.networks import quantized
from teachers.networks.adapters import merged_copy
from teachers.networks.quantized import QuantizedLinear
from tests.teachers.families import media, stock
from tests.teachers.families.stock import difference
from tests.teachers.families.training import batch_of, perturb

LINEAR = [name for name in (*stock.NAMES, *media.KINDS) if name not in ("EDM, CIFAR-10", "unconditional UNet")]


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.sampled
@pytest.mark.slow
def test_velocity_and_tangent_equal_those_of_the_merged_copy(name, tiny, tiny_media, monkeypatch):
    """In int8, because the rows of tiny networks are shorter than a block of nf4."""
    monkeypatch.setattr(quantized, "BLOCK", 1)
    monkeypatch.setattr(quantized, "MIN_WEIGHTS", 1)
    family, folder, *size = tiny(name) if name in stock.NAMES else tiny_media(name)
    cls = find(TEACHERS, family)
    teacher = cls.load_quantized("int8", str(folder), torch.device("cpu"), size=size[0] if size else None)
    layers = [m for m in teacher.denoiser.network.modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) > 4
    teacher.enable_lora(2)
    student = teacher.student()
    perturb(student.network)
    options = {"time_scale": student.time_scale, "max_angle": student.max_angle, "call": student.call}
    ordinary = Denoiser(merged_copy(student.network), student.path, student.prediction, **options)
    assert not any(isinstance(m, QuantizedLinear) for m in ordinary.network.modules())
    cond, t = batch_of(teacher, name).cond, torch.tensor([0.5, 1.1])
    x = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(1))
    arguments = (x, t), (torch.randn_like(x), torch.ones_like(t))
    value, tangent = jvp(lambda x, t: student.velocity(x, t, cond), *arguments)
    expected, slope = jvp(lambda x, t: ordinary.velocity(x, t, cond), *arguments)
    assert difference(value, expected) < 1e-4 and difference(tangent, slope) < 1e-3
    x.requires_grad_(True)
    gradients = [torch.autograd.grad(one.velocity(x, t, cond).square().sum(), x)[0] for one in (student, ordinary)]
    assert difference(*gradients) < 1e-3
