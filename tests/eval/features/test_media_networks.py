"""Networks for features of clips and sounds: I3D and VGGish, with random weights, and files of weights."""

import math

import numpy as np
import pytest
import torch

from eval.features.i3d import CLASSES, I3D, i3d_features, same_padding
from eval.features.media_extractors import media_extractor
from eval.features.vggish import VGGish, examples, mel_filters, vggish_features
from eval.features.weight_files import load_weights
from tests.eval.features.media_samples import CLIP, CPU, clips, sounds, tone


def test_the_parameters_are_those_of_the_published_networks():
    """12,697,264 is I3D's number with 400 classes, 72,141,184 VGGish's."""
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in I3D().parameters()) == 12_697_264
        assert sum(parameter.numel() for parameter in VGGish().parameters()) == 72_141_184
        names = list(I3D().state_dict())
    assert names[0] == "Conv3d_1a_7x7.conv3d.weight"
    assert {"Mixed_3b.b1a.bn.running_var", "Mixed_5c.b3b.conv3d.weight", "logits.conv3d.bias"} <= set(names)


@pytest.mark.parametrize("size", [7, 8, 9, 15, 16])
@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 1), (3, 2), (2, 2), (1, 1)])
def test_padding_is_that_of_tensorflow(size, kernel, stride):
    padded = same_padding(torch.ones(1, 1, size, size, size), (kernel,) * 3, (stride,) * 3)
    outputs = (padded.shape[2] - kernel) // stride + 1
    assert outputs == math.ceil(size / stride)
    line = padded[0, 0, :, padded.shape[3] // 2, padded.shape[4] // 2]
    before, after = (line == 1).int().argmax().item(), (line.flip(0) == 1).int().argmax().item()
    assert 0 <= after - before <= 1


@pytest.mark.slow
def test_i3d_runs_with_random_weights(tmp_path):
    torch.manual_seed(0)
    torch.save(I3D().state_dict(), tmp_path / "i3d.pt")
    extract = media_extractor(f"i3d={tmp_path / 'i3d.pt'}", CLIP)
    features = extract(clips(2))
    assert features.shape == (2, CLASSES)
    assert features.isfinite().all()
    assert extract.figure(2048) == "FVD-i3d@2048"
    assert len(extract.weights) == 64
    torch.testing.assert_close(extract(clips(2)[1:]), features[1:], rtol=1e-3, atol=1e-5)


def test_i3d_refuses_clips_that_are_too_short(tmp_path):
    with pytest.raises(ValueError, match='the features "i3d" must have clips of at least 9 frames, got 8'):
        i3d_features(tmp_path / "i3d.pt", 8, CPU)


@pytest.mark.exhaustive
def test_vggish_runs_with_random_weights(tmp_path):
    torch.manual_seed(0)
    torch.save({key: value.half() for key, value in VGGish().state_dict().items()}, tmp_path / "vggish.pt")
    features = vggish_features(tmp_path / "vggish.pt", 8000, CPU)(sounds(2))
    assert features.shape == (2, 128)
    assert features.isfinite().all()


def test_examples_of_vggish_are_windows_of_0_96_s():
    assert examples(torch.rand(2, 16000)).shape == (2, 1, 1, 96, 64)
    assert examples(torch.rand(2, 16000 * 10)).shape == (2, 10, 1, 96, 64)
    assert examples(torch.rand(2, 100)).shape == (2, 1, 1, 96, 64)


def test_mel_filters_of_vggish_find_a_tone():
    log_mel = examples(tone(1000, rate=16000, samples=16000)[:, 0])[0, 0, 0]
    band = log_mel.mean(dim=0).argmax().item()
    mel = [1127 * math.log(1 + f / 700) for f in (125, 7500, 1000)]
    assert band == pytest.approx((mel[2] - mel[0]) / (mel[1] - mel[0]) * 65 - 1, abs=1)
    assert mel_filters().shape == (64, 257)
    assert (mel_filters().max(dim=1).values > 0.3).all()


def state(**changes):
    return {**torch.nn.Linear(2, 3).state_dict(), **changes}


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"weight": torch.zeros(3, 2)}, r"bias must be \(3,\), got nothing"),
        (state(weight=torch.zeros(2, 2)), r"weight must be \(3, 2\), got \(2, 2\)"),
        (state(more=torch.zeros(1)), r"more must be nothing, got \(1,\)"),
        (state(note="text"), r"contains dict, expected a dictionary of the tensors of a network"),
        ([1, 2], r"contains list, expected a dictionary"),
    ],
)
def test_other_weights_are_refused(tmp_path, stored, message):
    torch.save(stored, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"w\.pt .*{message}"):
        load_weights(torch.nn.Linear(2, 3), tmp_path / "w.pt", "a network")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_damaged_weights_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x01" * 100)
    with pytest.raises(ValueError, match=rf"{name} cannot be read as weights \(.*\); expected those of a network"):
        load_weights(torch.nn.Linear(2, 3), tmp_path / name, "a network")


def test_code_in_weights_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return (np.save, (str(tmp_path / "attacked.npy"), np.zeros(1)))

    torch.save({"weight": Attack()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_weights(torch.nn.Linear(2, 3), tmp_path / "w.pt", "a network")
    assert not (tmp_path / "attacked.npy").exists()
