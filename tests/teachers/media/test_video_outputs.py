"""Clips: what is written, and what pipelines return."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from teachers.media import Video
from teachers.media.probe import clip_of
from tests.teachers.media.clip_files import CLIP, grey_frames, levels

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
@pytest.mark.first_is_quick
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
@pytest.mark.first_is_quick
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
