"""Clips: files that are refused, and limits before anything is decoded."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from teachers.media import video_decoding
from teachers.media.video_decoding import MAX_PIXELS
from tests.teachers.media.clip_files import CLIP, animation, grey_frames, levels, mp4, noise_file


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"<html><body>404</body></html>", "it is an HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a pointer of Git LFS; run git lfs pull"),
        (b"\x01\x02" * 500, "Invalid data"),
        (b"RIFF\x10\x00\x00\x00WEBPVP8X" + bytes(40), ""),
        (b"GIF89a" + bytes(20), ""),
    ],
)
def test_files_that_are_no_clips_are_refused_with_the_name(tmp_path, content, reason):
    (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\.mp4 cannot be read as a clip \(.*{reason}.*\); remove or replace it"):
        CLIP.read(tmp_path / "bad.mp4")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("name", ["noise.mp4", "noise.mkv", "noise.webp", "noise.gif"])
@pytest.mark.first_is_quick
def test_a_truncated_file_is_refused(tmp_path, share, name):
    frames = list(np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), dtype=np.uint8))
    file = mp4(tmp_path / name, frames) if name[-3:] in ("mp4", "mkv") else animation(tmp_path / name, frames, 130)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(
        ValueError, match=r"noise\.\w+ (cannot be read as a clip \(.*\); remove or replace it|is too short)"
    ):
        CLIP.read(file)


def test_damaged_frames_are_refused(tmp_path):
    file = noise_file(tmp_path)
    data = bytearray(file.read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[middle : middle + 500] = bytes(500)
    file.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"noise\.mp4 (cannot be read|has a damaged frame)"):
        CLIP.read(file)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.first_is_quick
def test_random_damage_never_raises_another_error(tmp_path, seed):
    rng = np.random.default_rng(seed)
    make = animation if seed % 2 else mp4
    name = f"a.{['mp4', 'webp', 'mkv', 'gif'][seed % 4]}"
    frames = list(rng.integers(0, 255, (9, 16, 16, 3), dtype=np.uint8))
    file = make(tmp_path / name, frames, 130) if make is animation else make(tmp_path / name, frames)
    data = np.frombuffer(file.read_bytes(), np.uint8).copy()
    where = rng.integers(0, len(data), 20)
    data[where] = rng.integers(0, 256, 20)
    try:
        reading = CLIP.read(data.tobytes(), "damaged")
        assert reading.values.shape == CLIP.shape
    except ValueError as error:
        assert str(error).startswith("damaged ")
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "playlist",
    ["#EXTM3U\n#EXTINF:10,\n{file}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile '{file}'\n", "v=0\nm=video 1 x\n"],
)
def test_playlists_do_not_open_other_files(tmp_path, playlist):
    other = mp4(tmp_path / "other.mp4", grey_frames(levels(9)))
    for name in ("list.mp4", "list.m3u8", "list.ffconcat"):
        (tmp_path / name).write_text(playlist.format(file=other))
        with pytest.raises(ValueError, match=rf"{name} cannot be read as a clip"):
            CLIP.read(tmp_path / name)


def test_a_name_is_never_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="cannot be read as a clip"):
        CLIP.read(Path("concat:a.mp4|b.mp4"))


def test_huge_frames_are_refused_before_they_are_decoded(tmp_path):
    data = mp4(tmp_path / "a.avi", grey_frames(levels(9)), codec="rawvideo", pix_fmt="bgr24").read_bytes()
    where = data.index(b"strf") + 12  # width and height of the frames
    huge = data[:where] + struct.pack("<ii", 10000, 10000) + data[where + 8 :]
    with pytest.raises(ValueError, match=r"is 10000 x 10000 pixels; a clip must have at most [\d,]+ pixels per frame"):
        CLIP.read(huge, "huge")


def test_decoders_refuse_frames_that_are_larger_than_declared(tmp_path, monkeypatch):
    """The header of the file says 32 x 32, the header of the video 64 x 64."""
    file = noise_file(tmp_path)
    monkeypatch.setattr(video_decoding, "MAX_PIXELS", 1024)
    data = bytearray(file.read_bytes())
    where = data.index(b"avc1", data.index(b"stsd")) + 4 + 24
    data[where : where + 4] = struct.pack(">HH", 32, 32)
    with pytest.raises(ValueError, match=r"(Picture size 64x64 exceeds|is 64 x 64 pixels|cannot be read)"):
        CLIP.read(bytes(data), "huge")


def test_huge_animations_are_refused(tmp_path):
    header = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
    block = b"\x2c" + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0x80) + bytes(6) + b"\x02\x02\x44\x01\x00\x3b"
    with pytest.raises(ValueError, match=r"huge (is 65535 x 65535|has more than|cannot be read)"):
        CLIP.read(header + block, "huge")
    assert MAX_PIXELS < 65535**2


@pytest.mark.parametrize("name", ["a.webp", "a.mp4"])
def test_frames_before_the_end_of_a_sample_are_limited_together(tmp_path, monkeypatch, name):
    frames = grey_frames(levels(9))
    file = mp4(tmp_path / name, frames) if name == "a.mp4" else animation(tmp_path / name, frames, 125)
    monkeypatch.setattr(video_decoding, "MAX_DECODED", 32 * 32 * 5)
    with pytest.raises(ValueError, match=r"has 6 frames of 32 x 32 pixels before the end of a sample; they must have"):
        CLIP.read(file)


@pytest.mark.slow
def test_only_needed_frames_are_decoded(tmp_path):
    """Frames after the sample are neither decoded nor checked: this file is truncated there."""
    file = mp4(tmp_path / "long.mkv", list(np.random.default_rng(0).integers(0, 255, (60, 32, 32, 3), dtype=np.uint8)))
    whole = CLIP.read(file).values
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert torch.equal(CLIP.read(file).values, whole)


def test_very_thin_clips_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is 80 x 2 pixels; its longer side must be at most 32 times the shorter one"):
        CLIP.read(mp4(tmp_path / "thin.mkv", [np.zeros((2, 80, 3), np.uint8)] * 9, pix_fmt="yuv444p"))


def test_high_dynamic_range_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has a high dynamic range"):
        CLIP.read(mp4(tmp_path / "hdr.mp4", grey_frames(levels(9)), color_trc=16))


def test_missing_packages_are_named(tmp_path, monkeypatch):
    file = mp4(tmp_path / "a.mp4", grey_frames(levels(9)))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ValueError, match=r'a\.mp4 .*without the package av; run pip install "fewstep\[video\]"'):
        CLIP.read(file)
    with pytest.raises(ValueError, match=r"b\.mp4 cannot be written without the package av; run pip install"):
        CLIP.save(torch.rand(1, *CLIP.shape), tmp_path / "b.mp4")
    assert CLIP.read(animation(tmp_path / "a.gif", grey_frames(levels(9)), 120)).values.shape == CLIP.shape
