"""Clips and sounds in TensorBoard and Weights & Biases, with stand-ins for both."""

import io
import wave
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image as PillowImage

from distill.training.tracked_samples import log_samples
from teachers.media import Audio, Image, Video

NAMES = ["teacher", "student, 1 steps"]
MEDIA = [Image(8, 8), Video(5, 16, 16, 8), Audio(2, 4000, 4000)]


class Wandb:
    """The three types of wandb; each keeps what wandb would store."""

    @staticmethod
    def Image(picture):
        return ("image", picture.size)

    @staticmethod
    def Video(data, format, caption):
        with PillowImage.open(data) as gif:
            return ("video", format, gif.n_frames, gif.size, caption)

    @staticmethod
    def Audio(path, caption):
        with wave.open(path) as sound:
            return ("audio", sound.getframerate(), sound.getnframes(), sound.getnchannels(), caption)


def rows(medium):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, *medium.shape, generator=generator) for _ in NAMES]


@pytest.mark.parametrize("medium", MEDIA, ids=lambda medium: medium.name)
def test_wandb_receives_a_grid_and_what_plays(medium):
    logged = []
    tracker = SimpleNamespace(name="wandb", log=lambda values, step: logged.append((values, step)))
    log_samples(tracker, 7, NAMES, torch.rand(3, 32, 64), rows(medium), medium, Wandb)
    ((values, step),) = logged
    assert step == 7 and values.pop("samples") == ("image", (64, 32))
    expected = {
        "image": {},
        "video": {"clips": ("video", "gif", 5, (32, 32), "teacher, student, 1 steps")},
        "audio": {f"samples/{name}": ("audio", 4000, 4000, 2, name) for name in NAMES},
    }
    assert values == expected[medium.name]


@pytest.mark.parametrize("medium", MEDIA, ids=lambda medium: medium.name)
def test_tensorboard_receives_a_grid_and_what_plays(medium):
    seen = {}
    writer = SimpleNamespace(
        add_image=lambda tag, picture, step: seen.update({tag: tuple(picture.shape)}),
        add_audio=lambda tag, sound, step, sample_rate: seen.update({tag: (tuple(sound.shape), sample_rate)}),
        file_writer=SimpleNamespace(add_summary=lambda summary, step: seen.update({"clips": summary})),
    )
    log_samples(
        SimpleNamespace(name="tensorboard", writer=writer), 7, NAMES, torch.rand(3, 32, 64), rows(medium), medium
    )
    assert seen.pop("samples") == (3, 32, 64)
    if isinstance(medium, Video):
        (value,) = seen.pop("clips").value
        with PillowImage.open(io.BytesIO(value.image.encoded_image_string)) as gif:
            assert (gif.format, gif.n_frames, gif.size) == ("GIF", 5, (32, 32))
    elif isinstance(medium, Audio):
        assert seen == {f"samples/{name}": ((1, 4000), 4000) for name in NAMES}


def test_other_trackers_receive_nothing():
    log_samples(SimpleNamespace(name="aim"), 7, NAMES, torch.rand(3, 8, 8), rows(MEDIA[0]), MEDIA[0])


def test_files_for_wandb_exist_until_they_are_logged():
    def log(values, step):
        assert all(Path(path).is_file() for path in values.values() if isinstance(path, str))

    wandb = SimpleNamespace(Image=lambda picture: picture, Audio=lambda path, caption: path)
    log_samples(SimpleNamespace(name="wandb", log=log), 1, NAMES, torch.rand(3, 8, 8), rows(MEDIA[2]), MEDIA[2], wandb)
