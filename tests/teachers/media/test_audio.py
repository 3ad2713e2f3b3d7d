"""Sounds: what is read of real files of each kind."""

import math

import av
import numpy as np
import pytest
import soundfile
import torch

from teachers.media import Audio
from teachers.media.resampling import LARGEST, ratio, resample
from tests.teachers.media.sound_files import LAYOUTS, RATE, SOUND, pcm, strongest, tone


@pytest.mark.parametrize(("width", "accuracy"), [(1, 2**-7), (2, 2**-15), (3, 2**-23), (4, 2**-24)])
def test_integers_of_every_width_are_read(tmp_path, width, accuracy):
    values = tone(440)
    reading = SOUND.read(pcm(tmp_path / "a.wav", values, width=width))
    assert reading.values.shape == SOUND.shape
    assert reading.values.dtype == torch.float32
    assert (reading.values[0] - torch.from_numpy(values[:, 0])).abs().max() <= accuracy
    assert reading.notes == ()


def test_the_extremes_of_every_width_are_full_scale(tmp_path):
    for width in (1, 2, 3, 4):
        values = np.array([[-1.0], [0.0], [1.0]] * 2667)[:8000]
        read = SOUND.read(pcm(tmp_path / "a.wav", values, width=width)).values[0, :3]
        assert read[0] == -1
        assert read[1] == 0
        assert 1 - 2.0 ** (1 - 8 * width) - 1e-7 <= read[2] <= 1


@pytest.mark.parametrize(
    ("name", "options", "accuracy"),
    [
        ("a.wav", {"subtype": "FLOAT"}, 1e-6),
        ("a.wav", {"subtype": "DOUBLE"}, 1e-6),
        ("a.wav", {"subtype": "ULAW"}, 0.03),
        ("a.wav", {"format": "WAVEX", "subtype": "PCM_24"}, 1e-6),
        ("a.wav", {"format": "RF64", "subtype": "PCM_16"}, 1e-4),
        ("a.flac", {}, 1e-4),
        ("a.ogg", {}, 0.05),
        ("a.aiff", {}, 1e-4),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}, 0.1),
    ],
)
def test_other_formats_are_read(tmp_path, name, options, accuracy):
    values = tone(440)
    soundfile.write(tmp_path / name, values, RATE, **options)
    reading = SOUND.read(tmp_path / name)
    assert (reading.values[0] - torch.from_numpy(values[:, 0])).abs().max() < accuracy
    assert strongest(reading.values[0]) == pytest.approx(440, abs=1.5)


def test_mp3_is_read(tmp_path):
    soundfile.write(tmp_path / "a.mp3", tone(440, seconds=1.3, rate=16000), 16000)
    reading = SOUND.read(tmp_path / "a.mp3")
    assert strongest(reading.values[0]) == pytest.approx(440, abs=1.5)
    assert reading.notes[0] == "have another sample rate than 8000 and are resampled"


def movie(file, sound: np.ndarray | None, rate: int = 16000, codec: str = "aac"):
    """A video file with a sound track, or without one."""
    with av.open(str(file), "w") as container:
        picture = container.add_stream("libx264", rate=8)
        picture.height = picture.width = 16
        track = container.add_stream(codec, rate=rate) if sound is not None else None
        if track is not None:
            track.codec_context.layout = LAYOUTS[sound.shape[1]]
        for _ in range(9):
            container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        container.mux(picture.encode())
        if track is not None:
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(sound.T, dtype=np.float32),
                format="fltp",
                layout=LAYOUTS[sound.shape[1]],
            )
            frame.rate = rate
            container.mux(track.encode(frame))
            container.mux(track.encode())
    return file


@pytest.mark.parametrize("name", ["a.mp4", "a.m4a", "a.mov", "a.mkv"])
@pytest.mark.first_is_quick
def test_the_sound_track_of_a_video_is_read(tmp_path, name):
    reading = SOUND.read(movie(tmp_path / name, tone(440, 1.5, 16000)))
    assert strongest(reading.values[0]) == pytest.approx(440, abs=1.5)
    assert reading.notes == (
        "have another sample rate than 8000 and are resampled",
        "are longer than 1 s; only their beginning is used",
    )


def test_a_video_without_a_sound_track_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"silent\.mp4 has no audio track$"):
        SOUND.read(movie(tmp_path / "silent.mp4", None))


def test_contents_are_read_as_files_are(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(440), RATE)
    for file in (pcm(tmp_path / "a.wav", tone(440)), tmp_path / "a.flac"):
        assert torch.equal(SOUND.read(file.read_bytes(), "a").values, SOUND.read(file).values)


@pytest.mark.parametrize("source", [4000, 11025, 16000, 22050, 44100, 48000, 44056, 96000, 7999])
@pytest.mark.first_is_quick
def test_a_tone_keeps_its_frequency_level_and_phase_when_it_is_resampled(source):
    frequency = 700.0
    resampled = resample(torch.from_numpy(tone(frequency, 1.0, source).T), source, RATE)
    assert abs(resampled.shape[1] - RATE) <= 1
    wanted = torch.from_numpy(tone(frequency)[:, 0])
    inner = slice(800, 7200)
    assert (resampled[0, inner] - wanted[inner]).abs().max() < 1e-3


@pytest.mark.parametrize("frequency", [4050, 4400, 7000, 12000, 20000])
def test_frequencies_that_would_alias_are_removed(frequency):
    resampled = resample(torch.from_numpy(tone(frequency, 1.0, 44100, level=1.0).T), 44100, RATE)
    assert resampled[0, 800:7200].abs().max() < 10 ** (-90 / 20)


def test_frequencies_below_the_cutoff_are_kept():
    for frequency in (20, 1000, 3500):
        resampled = resample(torch.from_numpy(tone(frequency, 1.0, 44100, level=1.0).T), 44100, RATE)
        assert resampled[0, 800:7200].abs().max() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("source", "target"), [(767_999, 8000), (44101, 44100), (8000, 767_999), (1000, 768_000)])
def test_ratios_of_unusual_rates_are_approximated(source, target):
    up, down = ratio(source, target)
    assert max(up, down) <= LARGEST * max(1, target // source)
    assert up / down == pytest.approx(target / source, rel=1e-4)


def test_a_longer_sound_is_cut_and_the_cut_does_not_change_it(tmp_path):
    """The filter reads beyond the end of the sample."""
    whole = np.random.default_rng(0).uniform(-0.5, 0.5, (3 * 16000, 1))
    reading = SOUND.read(pcm(tmp_path / "a.wav", whole, 16000, width=4))
    expected = resample(torch.from_numpy(whole.T), 16000, RATE)[:, :8000]
    assert (reading.values - expected).abs().max() < 1e-5
    assert reading.notes[-1] == "are longer than 1 s; only their beginning is used"


def test_a_shorter_sound_ends_with_silence_and_is_noted(tmp_path):
    reading = SOUND.read(pcm(tmp_path / "a.wav", tone(440, 0.25)))
    assert (reading.values[0, 2000:] == 0).all()
    assert reading.values[0, :2000].abs().max() > 0.4
    assert reading.notes == ("are shorter than 1 s and end with silence",)


@pytest.mark.parametrize("samples", [7999, 8001])
def test_a_rounded_duration_is_not_noted(tmp_path, samples):
    assert SOUND.read(pcm(tmp_path / "a.wav", tone(440, samples / RATE))).notes == ()


def test_two_channels_are_averaged_for_mono(tmp_path):
    stereo = np.concatenate([tone(440), tone(880)], axis=1)
    reading = SOUND.read(pcm(tmp_path / "a.wav", stereo))
    assert torch.allclose(reading.values[0], torch.from_numpy(stereo.mean(axis=1)).float(), atol=1e-4)
    assert reading.notes == ("have two channels, which are averaged",)


def test_one_channel_is_repeated_for_stereo(tmp_path):
    reading = Audio(2, 8000, RATE).read(pcm(tmp_path / "a.wav", tone(440)))
    assert torch.equal(reading.values[0], reading.values[1])
    assert reading.notes == ("have one channel, which is repeated",)


def test_channels_keep_their_order(tmp_path):
    stereo = np.concatenate([tone(440), tone(880)], axis=1)
    reading = Audio(2, 8000, RATE).read(pcm(tmp_path / "a.wav", stereo))
    assert [strongest(channel) for channel in reading.values] == pytest.approx([440, 880], abs=1.5)


@pytest.mark.parametrize("name", ["six.wav", "six.flac", "six.mp4"])
@pytest.mark.parametrize("channels", [1, 2])
def test_more_channels_are_refused(tmp_path, name, channels):
    values = tone(440, 0.2, channels=6)
    if name.endswith("mp4"):
        movie(tmp_path / name, values)
    else:
        soundfile.write(tmp_path / name, values, RATE)
    with pytest.raises(ValueError, match=r"six\.\w+ has 6 channels; a sound must have 1 or 2, so mix it down first"):
        Audio(channels, 8000, RATE).read(tmp_path / name)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    values = tone(440)
    values[100] = value
    soundfile.write(tmp_path / "bad.wav", values, RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"bad\.wav has values that are not finite \(NaN or infinity\); remove"):
        SOUND.read(tmp_path / "bad.wav")


def test_values_above_full_scale_are_clipped_and_noted(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(440, level=2.0), RATE, subtype="FLOAT")
    reading = SOUND.read(tmp_path / "a.wav")
    assert reading.values.abs().max() == 1
    assert reading.notes == ("exceed full scale and are clipped to [-1, 1]",)


def test_floating_point_values_in_another_unit_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(440, level=20000.0), RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"has values up to 2e\+04; floating-point samples must be in \[-1, 1\]"):
        SOUND.read(tmp_path / "a.wav")


def test_resampling_stays_in_range(tmp_path):
    square = np.sign(tone(300, rate=44100)) * 0.999
    assert SOUND.read(pcm(tmp_path / "a.wav", square, 44100)).values.abs().max() <= 1


def test_silence_is_noted(tmp_path):
    assert SOUND.read(pcm(tmp_path / "a.wav", np.zeros((8000, 1)))).notes == ("are silent",)
