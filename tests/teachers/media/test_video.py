"""Clips: what is read of real files of each kind."""

import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from teachers.media import Video
from tests.settings import ROOT
from tests.teachers.media.clip_files import CLIP, animation, grey_frames, levels, levels_of, mp4


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.avi", "a.m4v"])
@pytest.mark.first_is_quick
def test_a_video_of_the_right_rate_is_read_frame_by_frame(tmp_path, name):
    reading = CLIP.read(mp4(tmp_path / name, grey_frames(levels(9))))
    assert reading.values.shape == CLIP.shape
    assert reading.values.dtype == torch.float32
    assert np.allclose(levels_of(reading), levels(9), atol=2)
    assert reading.notes == ()


@pytest.mark.exhaustive
def test_the_first_gif_of_a_process_is_read(tmp_path):
    """Pillow registers its formats when it opens the first picture."""
    file = animation(tmp_path / "a.gif", grey_frames(levels(9)), 120)
    code = f"from pathlib import Path\nfrom tests.teachers.media.clip_files import CLIP\nCLIP.read(Path({str(file)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_webm_is_read(tmp_path):
    file = mp4(tmp_path / "a.webm", grey_frames(levels(9)), codec="libvpx-vp9")
    assert np.allclose(levels_of(CLIP.read(file)), levels(9), atol=3)


@pytest.mark.parametrize("name", ["a.webp", "a.gif"])
def test_an_animation_is_read_frame_by_frame(tmp_path, name):
    file = animation(tmp_path / name, grey_frames(levels(9)), 125 if name == "a.webp" else [120, 130] * 4 + [120])
    reading = CLIP.read(file)
    assert np.allclose(levels_of(reading), levels(9), atol=1)
    assert reading.notes == ()


def test_contents_are_read_as_files_are(tmp_path):
    for file in (
        mp4(tmp_path / "a.mp4", grey_frames(levels(9))),
        animation(tmp_path / "a.gif", grey_frames(levels(9)), 120),
    ):
        assert torch.equal(CLIP.read(file.read_bytes(), "a").values, CLIP.read(file).values)


def test_the_ending_does_not_decide_the_format(tmp_path):
    file = animation(tmp_path / "a.gif", grey_frames(levels(9)), 120).rename(tmp_path / "a.mp4")
    assert np.allclose(levels_of(CLIP.read(file)), levels(9), atol=1)


def test_a_higher_frame_rate_is_resampled_and_noted(tmp_path):
    reading = CLIP.read(mp4(tmp_path / "a.mp4", grey_frames(levels(40, step=5)), rate=24))
    assert np.allclose(levels_of(reading), levels(40, step=5)[0:25:3], atol=2)
    assert reading.notes == (
        "have another frame rate than 8 per second, or a variable one, and are resampled by their timestamps",
        "are longer than 1.12 s; only their beginning is used",
    )


def test_a_lower_frame_rate_repeats_frames_and_is_noted(tmp_path):
    reading = CLIP.read(mp4(tmp_path / "a.mp4", grey_frames(levels(5)), rate=4))
    assert np.allclose(levels_of(reading), [40, 40, 48, 48, 56, 56, 64, 64, 72], atol=2)
    assert reading.notes[1] == "have fewer than 8 frames per second, so that frames are repeated"


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.webp"])
def test_a_variable_frame_rate_is_resampled_by_timestamps(tmp_path, name):
    times = [0, 30, 60, 500, 530, 1000, 1100]
    if name == "a.webp":
        file = animation(tmp_path / name, grey_frames(levels(7)), [*np.diff(times).tolist(), 50])
    else:
        file = mp4(tmp_path / name, grey_frames(levels(7)), times=times)
    # nearest in time to 0, 125, ..., 1000; frames of animations are shown until the next one
    nearest, shown = (0, 2, 2, 3, 3, 4, 4, 5, 5), (0, 2, 2, 2, 3, 4, 4, 4, 5)
    expected = [levels(7)[index] for index in (shown if name == "a.webp" else nearest)]
    reading = CLIP.read(file)
    assert np.allclose(levels_of(reading), expected, atol=2)
    assert "variable" in reading.notes[0]


def test_nearly_the_right_rate_is_no_other_rate(tmp_path):
    clip = Video(frames=24, height=32, width=32, rate=24)
    file = mp4(tmp_path / "a.mp4", grey_frames(levels(24, step=5)), rate=Fraction(24000, 1001))
    reading = clip.read(file)
    assert np.allclose(levels_of(reading), levels(24, step=5), atol=2)
    assert reading.notes == ()


@pytest.mark.parametrize(("count", "rate"), [(8, 8), (24, 24), (1, 8), (4, 4)])
def test_a_clip_that_is_too_short_is_refused(tmp_path, count, rate):
    file = mp4(tmp_path / "short.mp4", grey_frames(levels(count, step=3)), rate=rate)
    with pytest.raises(ValueError, match=r"short\.mp4 is too short: it has \d+ frames? in .* s; a clip must have 9 fr"):
        CLIP.read(file)


def test_a_still_image_is_too_short(tmp_path):
    PillowImage.new("RGB", (32, 32)).save(tmp_path / "one.webp")
    with pytest.raises(ValueError, match=r"one\.webp is too short: it has 1 frame in 0\.1 s; a clip must have 9"):
        CLIP.read(tmp_path / "one.webp")


def test_delays_of_zero_are_those_of_browsers(tmp_path):
    reading = CLIP.read(animation(tmp_path / "a.gif", grey_frames(levels(16)), 0))
    assert np.allclose(levels_of(reading), [levels(16)[round(k * 1.25 - 1e-9)] for k in range(9)], atol=1)


def corners(height=32, width=48) -> np.ndarray:
    """A picture whose upper left quarter is light."""
    picture = np.full((height, width, 3), 40, np.uint8)
    picture[: height // 2, : width // 2] = 220
    return picture


def rotated(file: Path, matrix: tuple[int, ...]) -> Path:
    """Store a rotation in the header of an .mp4, as telephones do."""
    data = bytearray(file.read_bytes())
    start = data.index(b"tkhd") + 44
    data[start : start + 36] = struct.pack(">9i", *matrix)
    file.write_bytes(bytes(data))
    return file


ONE, LAST = 2**16, 2**30


@pytest.mark.parametrize(
    ("matrix", "light"),
    [
        ((ONE, 0, 0, 0, ONE, 0, 0, 0, LAST), (0, 0)),
        ((0, ONE, 0, -ONE, 0, 0, 32 * ONE, 0, LAST), (0, 1)),  # a quarter turn clockwise
        ((-ONE, 0, 0, 0, -ONE, 0, 48 * ONE, 32 * ONE, LAST), (1, 1)),
        ((0, -ONE, 0, ONE, 0, 0, 0, 48 * ONE, LAST), (1, 0)),
    ],
)
def test_a_stored_rotation_is_applied(tmp_path, matrix, light):
    file = rotated(mp4(tmp_path / "a.mp4", [corners()] * 9), matrix)
    picture = CLIP.read(file).values[0, 4]
    quarters = {
        (y, x): picture[2 + 16 * y : 14 + 16 * y, 2 + 16 * x : 14 + 16 * x].mean() for y in (0, 1) for x in (0, 1)
    }
    assert max(quarters, key=quarters.get) == light


def test_other_sizes_are_cropped_to_the_centre(tmp_path):
    wide = np.full((40, 120, 3), 30, np.uint8)
    wide[:, 40:80] = 200
    reading = CLIP.read(mp4(tmp_path / "wide.mp4", [wide] * 9))
    assert reading.values.shape == CLIP.shape
    assert (reading.values[:, :, :, 2:-2] > 0.4).all()


def test_odd_sizes_are_read(tmp_path):
    frames = [np.full((33, 45, 3), 100, np.uint8)] * 9
    file = mp4(tmp_path / "odd.mkv", frames, pix_fmt="yuv444p")
    assert np.allclose(levels_of(CLIP.read(file)), 100, atol=2)


def test_the_shape_of_pixels_is_applied(tmp_path):
    """32 x 32 pixels that are twice as wide as high: the outer quarters are cropped."""
    picture = np.full((32, 32, 3), 30, np.uint8)
    picture[:, 8:24] = 200
    file = mp4(tmp_path / "wide.mkv", [picture] * 9, sample_aspect_ratio=Fraction(2, 1))
    assert (CLIP.read(file).values[:, :, :, 2:-2] > 0.4).all()


def test_colours_are_converted_by_the_matrix_of_the_file(tmp_path):
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0], red[..., 1] = 200, 40
    plain, tagged = tmp_path / "plain.mkv", tmp_path / "tagged.mkv"
    mp4(plain, [red] * 9)
    mp4(tagged, [red] * 9, colorspace=1)  # BT.709, without converting
    difference = (CLIP.read(plain).values - CLIP.read(tagged).values).abs().mean(dim=(1, 2, 3))
    assert difference.max() > 0.03


def test_transparent_pixels_are_white_and_noted(tmp_path):
    images = []
    for index in range(9):
        image = PillowImage.new("RGBA", (32, 32), (40 + 20 * index, 40, 40, 0))
        image.paste((10, 10, 10 + index, 255), (0, 0, 16, 32))
        images.append(image)
    file = tmp_path / "clear.webp"
    images[0].save(file, save_all=True, append_images=images[1:], duration=125, lossless=True)
    reading = CLIP.read(file)
    assert (reading.values[:, :, :, 17:] == 1).all()
    assert (reading.values[:, :, :, :15] < -0.8).all()
    assert reading.notes == ("have transparency, which is composited on white",)


def test_sound_is_ignored(tmp_path):
    reading = CLIP.read(mp4(tmp_path / "a.mp4", grey_frames(levels(9)), sound=True))
    assert np.allclose(levels_of(reading), levels(9), atol=2)


def test_a_file_with_sound_only_is_refused(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        track = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(track.encode(frame))
        container.mux(track.encode())
    with pytest.raises(ValueError, match=r"sound\.mp4 has no video track; it contains sound only$"):
        CLIP.read(tmp_path / "sound.mp4")
