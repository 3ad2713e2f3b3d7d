"""Offloading the teacher. Another dtype takes the place of a GPU, because `.to` accepts both."""

import pytest
import torch
from safetensors.torch import load_file

from distill.config.recipe import load
from distill.data.batch import Batch
from distill.data.batch_random import BatchRandom
from distill.methods.dmd import DMD
from distill.methods.dmd_options import DMDOptions
from distill.train import train
from distill.training import checkpoint
from teachers.families.stable_diffusion import StableDiffusion
from teachers.networks.offload import Offload


def test_network_is_on_the_device_only_within_the_context():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).requires_grad_(False).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    offloaded = Offload(network, torch.device("cpu"))
    offloaded.device = torch.float64
    for _ in range(2):
        with offloaded.on_device():
            assert network(torch.zeros(2, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    with pytest.raises(KeyError), offloaded.on_device():
        raise KeyError
    assert all(p.dtype == torch.float32 for p in network.parameters())


@pytest.mark.slow
def test_offloaded_teacher_gives_equal_velocities_and_is_copied_once_per_call(text_pipeline, monkeypatch):
    device = torch.device("cpu")
    teacher = StableDiffusion.load(str(text_pipeline), device)
    cond = teacher.condition(["a coat", "a bag"])
    x, t = torch.randn(2, *teacher.shape), torch.tensor([0.4, 1.2])
    expected = teacher.velocity(x, t, cond, 2.0)
    method = DMD(teacher, 2.0, DMDOptions())
    teacher.offload(device)
    copies, on_device = [], teacher.offloaded.on_device
    monkeypatch.setattr(teacher.offloaded, "on_device", lambda: copies.append(1) or on_device())
    assert torch.equal(teacher.velocity(x, t, cond, 2.0), expected)
    method.gradient(x, x, t, cond)
    assert len(copies) == 2
    method.student.velocity(x, t, cond)
    method.fake_score.velocity(x, t, cond)
    assert len(copies) == 2


@pytest.mark.slow
def test_discriminator_on_an_offloaded_teacher_raises_an_error(text_pipeline):
    teacher = StableDiffusion.load(str(text_pipeline), torch.device("cpu"))
    method = DMD(teacher, 2.0, DMDOptions(gan_weight=0.1, gan_features="teacher"))
    teacher.offload(torch.device("cpu"))
    cond, latents = teacher.condition(["a coat", "a bag"]), torch.randn(2, *teacher.shape)
    batch = Batch(cond, BatchRandom(("x",), 0, 2, 2, torch.device("cpu")), latents)
    with pytest.raises(ValueError, match=r"memory\.offload_teacher"):
        method("student", batch, 0)


@pytest.mark.slow
def test_run_with_an_offloaded_teacher_gives_equal_weights(text_pipeline, tmp_path):
    (tmp_path / "prompts.txt").write_text("a coat\na bag\n")
    (tmp_path / "a.yaml").write_text(
        f"name: resident\noutput: {tmp_path}\nteacher: {{path: {text_pipeline}, guidance: 2.0}}\n"
        "method: {name: dmd}\n"
        f"data: {{prompts: {tmp_path / 'prompts.txt'}}}\n"
        "train: {steps: 2, batch_size: 2, evaluate_every: 1, evaluate_samples: 2, evaluate_teacher_steps: 1,\n"
        "  tracker: none}\n"
    )
    for name, setting in (("resident", "false"), ("offloaded", "true")):
        train(load(tmp_path / "a.yaml", [f"name={name}", f"memory.offload_teacher={setting}"]))
    ends = [
        load_file(tmp_path / name / "checkpoints/00000002" / checkpoint.WEIGHTS) for name in ("resident", "offloaded")
    ]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
