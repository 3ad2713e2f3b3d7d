"""Sounds: what is written, and what pipelines return."""

import io
import math
import wave

import numpy as np
import pytest
import torch
from torch import Tensor

from teachers.media import Audio
from teachers.media.spectrogram import HEIGHT, WIDTH, colour_table
from tests.teachers.media.sound_files import RATE, SOUND, strongest, tone

SAMPLES = torch.from_numpy(np.stack([tone(440).T, tone(880).T, tone(220).T])).float()


def test_what_is_written_is_read_again(tmp_path):
    assert SOUND.save(SAMPLES[:1], tmp_path / "a.wav") == [tmp_path / "a.wav"]
    reading = SOUND.read(tmp_path / "a.wav")
    assert (reading.values - SAMPLES[0]).abs().max() < 1e-4
    assert reading.notes == ()


def test_several_sounds_are_written_as_numbered_files(tmp_path):
    files = SOUND.save(SAMPLES, tmp_path / "a.wav")
    assert [file.name for file in files] == ["a-1.wav", "a-2.wav", "a-3.wav"]
    assert [strongest(SOUND.read(file).values[0]) for file in files] == pytest.approx([440, 880, 220], abs=1.5)


def test_values_out_of_range_are_clipped_when_they_are_written(tmp_path):
    samples = torch.tensor([[[2.0, -2.0, math.nan, 0.5] * 2000]])
    SOUND.save(samples, tmp_path / "a.wav")
    assert SOUND.read(tmp_path / "a.wav").values[0, :4].tolist() == pytest.approx([1, -1, 0, 0.5], abs=1e-4)


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a file of sounds must end in \.wav, got .*a\.mp3"):
        SOUND.save(SAMPLES, tmp_path / "a.mp3")


def test_browsers_receive_a_wav_for_each_sound():
    stereo = Audio(2, 8000, RATE)
    playables = stereo.playable(SAMPLES.expand(-1, 2, -1))
    assert [playable.mime for playable in playables] == ["audio/wav"] * 3
    with wave.open(io.BytesIO(playables[0].data)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (2, 2, RATE, 8000)


def lightness(picture: Tensor) -> Tensor:
    return (picture * torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(0)


def test_the_still_is_a_spectrogram_with_low_frequencies_below():
    rows = [lightness(SOUND.still(sample)).mean(dim=1).argmax().item() for sample in SAMPLES]
    assert SOUND.still(SAMPLES[0]).shape == (3, HEIGHT, WIDTH)
    assert rows[1] < rows[0] < rows[2]  # 880 Hz above 440 Hz above 220 Hz


def test_the_still_shows_time_from_left_to_right():
    late = torch.cat([torch.zeros(1, 4000), SAMPLES[0, :, :4000]], dim=1)
    columns = lightness(SOUND.still(late)).mean(dim=0)
    assert columns[: WIDTH // 2 - 16].max() < columns[WIDTH // 2 + 16 :].min()


def test_colours_show_the_level_of_each_sound_alike():
    loud, soft = lightness(SOUND.still(SAMPLES[0])), lightness(SOUND.still(SAMPLES[0] / 100))
    assert loud.max() > soft.max() > lightness(SOUND.still(torch.zeros(1, 8000))).max()


def test_colours_become_lighter():
    assert (lightness(colour_table().T[:, None])[0].diff() > 0).all()
    assert colour_table().min() >= 0
    assert colour_table().max() <= 1


@pytest.mark.parametrize(
    ("channels", "samples", "rate"), [(1, 16, 8000), (2, 100, 4000), (2, 44100 * 20, 44100), (1, 1, 100)]
)
def test_sounds_of_any_length_have_a_still(channels, samples, rate):
    medium = Audio(channels, samples, rate)
    assert medium.still(torch.rand(medium.shape)).shape == (3, HEIGHT, WIDTH)


def test_opposite_channels_do_not_cancel_in_the_still():
    stereo = Audio(2, 8000, RATE)
    opposite = torch.cat([SAMPLES[0], -SAMPLES[0]])
    assert torch.allclose(stereo.still(opposite), SOUND.still(SAMPLES[0]))


def test_the_still_of_values_that_are_not_finite_is_a_picture():
    assert SOUND.still(torch.full((1, 8000), math.nan)).isfinite().all()


@pytest.mark.parametrize("kind", ["tensor", "array", "without channels", "object", "tuple", "list", "half"])
def test_outputs_of_pipelines_are_received(kind):
    output = {
        "tensor": SAMPLES,
        "array": SAMPLES.numpy(),
        "without channels": SAMPLES[:, 0].numpy(),
        "object": type("Output", (), {"audios": SAMPLES}),
        "tuple": (SAMPLES,),
        "list": list(SAMPLES.numpy()),
        "half": SAMPLES.half(),
    }[kind]
    received = SOUND.received(output)
    assert received.dtype == torch.float32
    assert torch.allclose(received, SAMPLES, atol=1e-3)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_duration_rounded_to_one_sample_less_or_more_is_received(change):
    received = SOUND.received(torch.rand(2, 1, 8000 + change) + 0.1)
    assert received.shape == (2, 1, 8000)
    assert (received[:, :, -1] == 0).all() == (change < 0)


def test_values_out_of_range_are_received():
    output = torch.tensor([2.0, -3.0, math.nan, 0.5]).repeat(2000)[None, None]
    received = SOUND.received(output)[0, 0, :4]
    assert received[[0, 1, 3]].tolist() == [1, -1, 0.5]
    assert received[2].isnan()


@pytest.mark.parametrize(
    "output",
    [
        torch.rand(2, 2, 8000),
        torch.rand(2, 1, 7000),
        torch.zeros(2, 1, 8000, dtype=torch.int16),
        torch.rand(8000),
        None,
        "a",
    ],
)
def test_other_outputs_are_refused(output):
    with pytest.raises(ValueError, match=r"(a pipeline must return sounds|sounds must have the shape \(B, 1, 8000\))"):
        SOUND.received(output)


def test_an_audio_is_a_value():
    assert Audio(1, 8000, 8000) == SOUND
    assert hash(Audio(1, 8000, 8000)) == hash(SOUND)
    assert repr(SOUND) == "Audio(channels=1, samples=8000, rate=8000)"
    assert SOUND.seconds == 1.0
    assert torch.equal(SOUND.judged(torch.tensor([-2.0, 0.5, 2.0])), torch.tensor([-1.0, 0.5, 1.0]))
