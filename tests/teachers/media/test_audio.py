"""Sounds: what is read of real files of each kind, what is refused, and what is written."""

import io
import math
import struct
import sys
import wave

import av
import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from teachers.media import Audio
from teachers.media.resampling import LARGEST, ratio, resample
from teachers.media.spectrogram import HEIGHT, WIDTH, colour_table

RATE = 8000
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
SOUND = Audio(channels=1, samples=8000, rate=RATE)


def tone(frequency: float, seconds: float = 1.0, rate: int = RATE, channels: int = 1, level: float = 0.5) -> np.ndarray:
    """A sine (samples, channels)."""
    values = level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)
    return np.repeat(values[:, None], channels, axis=1)


def pcm(file, values: np.ndarray, rate: int = RATE, width: int = 2):
    """A .wav file of integers, written byte by byte as the format defines them."""
    scaled = np.clip(np.round(values * 2.0 ** (8 * width - 1)), -(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1)
    integers = scaled.astype(np.int64)
    data = b"".join(
        (int(v) + 128).to_bytes(1, "little") if width == 1 else int(v).to_bytes(width, "little", signed=True)
        for v in integers.flatten()
    )
    with wave.open(str(file), "wb") as stream:
        stream.setnchannels(values.shape[1])
        stream.setsampwidth(width)
        stream.setframerate(rate)
        stream.writeframes(data)
    return file


def strongest(sound: Tensor, rate: int = RATE) -> float:
    """The strongest frequency in Hz."""
    spectrum = torch.fft.rfft(sound.double() * torch.hann_window(sound.shape[-1])).abs()
    return spectrum.flatten().argmax().item() * rate / sound.shape[-1]


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


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"<html><body>404</body></html>", "it is an HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a pointer of Git LFS"),
        (b"\x01\x02" * 500, "Format not recognised"),
        (b"RIFF\x24\x00\x00\x00WAVE", ""),
        (b"fLaC" + bytes(50), ""),
        (b"#EXTM3U\n#EXTINF:10,\na.wav\n#EXT-X-ENDLIST\n", ""),
    ],
)
def test_files_that_are_no_sounds_are_refused_with_the_name(tmp_path, content, reason):
    (tmp_path / "bad.wav").write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\.wav cannot be read as a sound \(.*{reason}.*\); remove or replace it"):
        SOUND.read(tmp_path / "bad.wav")


def test_a_sound_without_samples_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.wav has no samples; remove or replace it"):
        SOUND.read(pcm(tmp_path / "a.wav", np.zeros((0, 1))))


def test_a_truncated_wav_is_refused(tmp_path):
    file = pcm(tmp_path / "cut.wav", tone(440))
    file.write_bytes(file.read_bytes()[:9000])
    with pytest.raises(ValueError, match=r"cut\.wav is truncated: it has 4478 of 8000 samples; remove or replace it"):
        SOUND.read(file)


def test_a_wav_of_unknown_length_is_read(tmp_path):
    """Programs that write to a pipe store the largest length."""
    file = pcm(tmp_path / "a.wav", tone(440))
    data = bytearray(file.read_bytes())
    data[4:8] = data[40:44] = struct.pack("<I", 0xFFFFFFFF)
    assert torch.equal(SOUND.read(bytes(data), "pipe").values, SOUND.read(file).values)


@pytest.mark.parametrize(
    "field",
    [(22, "<H", 60000), (24, "<I", 0), (24, "<I", 999), (24, "<I", 4_000_000_000), (34, "<H", 0), (34, "<H", 65535)],
)
def test_headers_with_impossible_numbers_are_refused(tmp_path, field):
    file = pcm(tmp_path / "a.wav", tone(440, 0.1))
    data = bytearray(file.read_bytes())
    struct.pack_into(field[1], data, field[0], field[2])
    with pytest.raises(ValueError, match=r"^bad "):
        SOUND.read(bytes(data), "bad")


@pytest.mark.parametrize("seed", range(20))
def test_random_damage_never_raises_another_error(tmp_path, seed):
    rng = np.random.default_rng(seed)
    file = tmp_path / f"a.{['wav', 'flac', 'ogg', 'mp3'][seed % 4]}"
    soundfile.write(file, rng.uniform(-1, 1, (8000, 1 + seed % 2)), RATE)
    data = np.frombuffer(file.read_bytes(), np.uint8).copy()
    where = rng.integers(0, min(len(data), 200 if seed % 3 else len(data)), 10)
    data[where] = rng.integers(0, 256, 10)
    try:
        reading = SOUND.read(data.tobytes(), "damaged")
        assert reading.values.shape == SOUND.shape
        assert reading.values.abs().max() <= 1
    except ValueError as error:
        assert str(error).startswith("damaged ")
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_missing_packages_are_named(tmp_path, monkeypatch, name):
    soundfile.write(tmp_path / name, tone(440), RATE, subtype="FLOAT" if name == "a.wav" else None)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        ValueError, match=r"it is no \.wav file with integer samples, and soundfile and av are not inst"
    ):
        SOUND.read(tmp_path / name)
    assert SOUND.read(pcm(tmp_path / "b.wav", tone(440))).values.shape == SOUND.shape


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
