"""Clips: what is read of real files of each kind, what is refused, and what is written."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from teachers.media import Video, video_decoding
from teachers.media.probe import clip_of
from teachers.media.video_decoding import MAX_PIXELS

CLIP = Video(frames=9, height=32, width=32, rate=8)


def levels(count: int, first: int = 40, step: int = 8) -> list[int]:
    """Grey levels that tell frames apart after compression."""
    return [first + step * index for index in range(count)]


def grey_frames(values, height=32, width=32) -> list[np.ndarray]:
    return [np.full((height, width, 3), value, np.uint8) for value in values]


def mp4(file: Path, frames, times=None, rate=8, codec="libx264", sound=False, **properties) -> Path:
    """A video file. `times` are timestamps in units of 1 / 1000 s; without them the rate is constant."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = properties.pop("pix_fmt", "yuv420p")
        if codec == "libx264":
            stream.options = {"crf": "6", **properties.pop("options", {})}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for name, value in properties.items():
            setattr(stream.codec_context, name, value)
        track = container.add_stream("aac", rate=8000) if sound else None
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if track:
            noise = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
            noise.rate = 8000
            container.mux(track.encode(noise))
            container.mux(track.encode())
    return file


def animation(file: Path, frames, durations, **options) -> Path:
    images = [PillowImage.fromarray(frame) for frame in frames]
    lossless = {"lossless": True} if file.suffix == ".webp" else {}
    images[0].save(file, save_all=True, append_images=images[1:], duration=durations, loop=0, **lossless, **options)
    return file


def levels_of(reading) -> list[int]:
    """The mean of each frame as an 8-bit grey level."""
    return ((reading.values.mean(dim=(0, 2, 3)) + 1) * 127.5).round().int().tolist()


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.avi", "a.m4v"])
def test_a_video_of_the_right_rate_is_read_frame_by_frame(tmp_path, name):
    reading = CLIP.read(mp4(tmp_path / name, grey_frames(levels(9))))
    assert reading.values.shape == CLIP.shape
    assert reading.values.dtype == torch.float32
    assert np.allclose(levels_of(reading), levels(9), atol=2)
    assert reading.notes == ()


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


def noise_file(folder: Path, name: str = "noise.mp4") -> Path:
    frames = list(np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), dtype=np.uint8))
    return mp4(folder / name, frames)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("name", ["noise.mp4", "noise.mkv", "noise.webp", "noise.gif"])
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


SAMPLES = (
    torch.from_numpy(np.stack(grey_frames(levels(9, step=20)))).permute(3, 0, 1, 2)[None].repeat(3, 1, 1, 1, 1) / 255
)


@pytest.mark.parametrize("ending", [".mp4", ".webp", ".gif", ".MP4"])
def test_what_is_written_is_read_again(tmp_path, ending):
    file = tmp_path / f"a{ending}"
    assert CLIP.save(SAMPLES[:1], file) == [file]
    reading = CLIP.read(file)
    assert (CLIP.judged(reading.values) - SAMPLES[0]).abs().max() < 0.03
    assert reading.notes == ()


@pytest.mark.parametrize("ending", [".mp4", ".webp", ".gif"])
@pytest.mark.parametrize("frames", [2, 9])
def test_a_frozen_clip_keeps_its_duration(tmp_path, ending, frames):
    """Encoders merge equal frames, and WebP's writes a picture without a duration."""
    medium = Video(frames=frames, height=20, width=30, rate=8)
    frozen = torch.linspace(0, 1, 30).expand(1, 3, frames, 20, 30)
    (file,) = medium.save(frozen, tmp_path / f"frozen{ending}")
    read = medium.read(file)
    assert not read.notes
    assert (medium.judged(read.values) - frozen[0]).abs().mean() < 0.05
    with pytest.raises(ValueError, match="is too short"):
        Video(frames=2 * frames, height=20, width=30, rate=8).read(file)


@pytest.mark.parametrize("ending", [".webp", ".gif"])
def test_equal_frames_that_a_file_merges_are_read_at_their_times(tmp_path, ending):
    medium = Video(frames=9, height=20, width=30, rate=8)
    levels = torch.tensor([0.1, 0.4, 0.4, 0.4, 0.4, 0.7, 0.7, 0.7, 0.9])
    clip = levels[None, None, :, None, None].expand(1, *medium.shape)
    read = medium.judged(medium.read(medium.save(clip, tmp_path / f"a{ending}")[0]).values)
    assert read.mean(dim=(0, 2, 3)).tolist() == pytest.approx(levels.tolist(), abs=0.03)


@pytest.mark.parametrize("ending", [".mp4", ".webp", ".gif"])
@pytest.mark.parametrize(("frames", "rate"), [(9, 8.0), (17, 16.0), (25, 24.0)])
def test_the_size_and_the_rate_of_a_clip_are_found(tmp_path, ending, frames, rate):
    medium = Video(frames=frames, height=20, width=30, rate=rate)
    clip = torch.rand(1, *medium.shape, generator=torch.Generator().manual_seed(0))
    clip[:, :, 3:6] = clip[:, :, 3:4]  # equal frames, which animations merge
    found = clip_of(medium.save(clip, tmp_path / f"a{ending}")[0])
    assert (found.frames, found.height, found.width) == (frames, 20, 30)
    assert found.rate == pytest.approx(rate, rel=0.02)


def test_several_clips_are_written_as_one_grid(tmp_path):
    CLIP.save(SAMPLES, tmp_path / "a.gif", columns=2)
    with PillowImage.open(tmp_path / "a.gif") as image:
        assert image.size == (64, 64)
        assert image.n_frames == 9


def test_odd_sizes_are_written_as_mp4(tmp_path):
    clip = Video(frames=9, height=31, width=33, rate=7.5)
    clip.save(torch.rand(1, *clip.shape), tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        track = container.streams.video[0]
        assert (track.codec_context.width, track.codec_context.height) == (34, 32)
        assert track.average_rate == Fraction(15, 2)
        assert track.frames == 9


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a file of clips must end in \.mp4, \.webp or \.gif, got .*a\.png"):
        CLIP.save(SAMPLES, tmp_path / "a.png")


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"before")
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        CLIP.save(torch.rand(1, 4, 9, 32, 32), tmp_path / "a.mp4")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]


def test_browsers_receive_one_looping_animation_for_each_clip():
    first, *others = CLIP.playable(SAMPLES)
    assert (first.mime, first.width, first.height, len(others)) == ("image/webp", 32, 32, 2)
    with PillowImage.open(io.BytesIO(first.data)) as image:
        durations = []
        for index in range(image.n_frames):
            image.seek(index)
            image.load()
            durations.append(image.info["duration"])
        assert (image.n_frames, image.info["loop"]) == (9, 0)
    assert sum(durations) == 1125


def test_the_still_is_a_filmstrip_from_the_first_to_the_last_frame():
    strip = CLIP.still(SAMPLES[0])
    assert strip.shape == (3, 32, 8 * 32 + 7)
    assert torch.equal(strip[:, :, :32], SAMPLES[0, :, 0])
    assert torch.equal(strip[:, :, -32:], SAMPLES[0, :, -1])
    assert (strip[:, :, 32] == 1).all()
    short = Video(frames=2, height=8, width=8, rate=1)
    assert short.still(torch.rand(short.shape)).shape == (3, 8, 17)


@pytest.mark.parametrize("kind", ["tensor", "array", "pil", "bytes", "object", "tuple", "list of tensors"])
def test_outputs_of_pipelines_are_received(kind):
    pixels = np.random.default_rng(0).integers(0, 255, (2, 9, 32, 32, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(0, 1, 4, 2, 3).float() / 255
    output = {
        "tensor": tensor,
        "array": pixels.astype(np.float32) / 255,
        "pil": [[PillowImage.fromarray(frame) for frame in clip] for clip in pixels],
        "bytes": pixels,
        "object": type("Output", (), {"frames": tensor}),
        "tuple": (tensor,),
        "list of tensors": list(tensor),
    }[kind]
    received = CLIP.received(output)
    assert received.dtype == torch.float32
    assert torch.allclose(received, tensor.transpose(1, 2))


def test_half_precision_and_values_out_of_range_are_received():
    output = torch.full((1, 9, 3, 32, 32), 1.5, dtype=torch.float16)
    output[0, 0] = torch.nan
    received = CLIP.received(output)
    assert received[0, :, 1:].eq(1).all()
    assert received[0, :, 0].isnan().all()


@pytest.mark.parametrize(
    "output",
    [torch.rand(2, 3, 32, 32), torch.rand(2, 8, 3, 32, 32), torch.rand(2, 3, 9, 32, 32), [], "clips", None],
)
def test_other_outputs_are_refused(output):
    with pytest.raises(
        ValueError, match=r"(a pipeline must return clips as|clips must have the shape \(B, 3, 9, 32, 32\))"
    ):
        CLIP.received(output)


def test_the_decoded_range_is_judged_in_0_to_1():
    decoded = torch.tensor([-2.0, -1.0, 0.0, 1.0, torch.nan])
    assert torch.equal(CLIP.judged(decoded)[:4], torch.tensor([0.0, 0.0, 0.5, 1.0]))
    assert CLIP.judged(decoded)[4].isnan()


def test_a_video_is_a_value():
    assert Video(9, 32, 32, 8) == CLIP
    assert hash(Video(9, 32, 32, 8)) == hash(CLIP)
    assert repr(CLIP) == "Video(frames=9, height=32, width=32, rate=8)"
    assert CLIP.seconds == 1.125
    with pytest.raises(AttributeError):
        CLIP.frames = 3
