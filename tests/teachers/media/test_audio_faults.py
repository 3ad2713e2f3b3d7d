"""Sounds: files that are refused."""

import struct
import sys

import numpy as np
import pytest
import soundfile
import torch

from tests.teachers.media.sound_files import RATE, SOUND, pcm, tone


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
@pytest.mark.first_is_quick
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
