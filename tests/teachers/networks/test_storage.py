"""Computation with half-precision weights on a CPU."""

import pytest
import torch
import torch.nn.functional as F

from teachers.networks.storage import correct_patch_embedding


@pytest.mark.parametrize(("channels", "patch"), [(4, 2), (4, 8), (4, 16), (8, 8), (16, 4), (16, 16)])
def test_bfloat16_patch_embeddings_on_a_cpu_are_correct(channels, patch):
    """oneDNN 3.12 silently returns wrong results for some of them on CPUs with AMX."""
    torch.manual_seed(0)
    sample = torch.randn(2, channels, 64, 64).bfloat16()
    weight = torch.randn(24, channels, patch, patch).div(channels**0.5 * patch).bfloat16()
    expected = F.conv2d(sample.float(), weight.float(), stride=patch)
    with correct_patch_embedding(sample, patch):
        found = F.conv2d(sample, weight, stride=patch)
    assert (found.float() - expected).abs().max() < 0.02 * expected.abs().max()
    with torch.autocast("cpu", torch.bfloat16), correct_patch_embedding(sample.float(), patch):
        found = F.conv2d(sample.float(), weight.float(), stride=patch)
    assert (found.float() - expected).abs().max() < 0.02 * expected.abs().max()


def test_onednn_is_enabled_again_after_an_error():
    enabled = torch.backends.mkldnn.enabled
    with pytest.raises(KeyError), correct_patch_embedding(torch.zeros(1, 4, 32, 32).bfloat16(), 16):
        assert not torch.backends.mkldnn.enabled
        raise KeyError
    assert torch.backends.mkldnn.enabled == enabled
