"""Clips and sounds in TensorBoard and Weights & Biases, with stand-ins for both."""

import io
import wave
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image as PillowImage

from distill.training.tracked_samples import log_media
from teachers.media import Audio, Image, Video

NAMES = ["teacher", "student, 1 step"]
MEDIA = [Image(8, 8), Video(5, 16, 16, 8), Audio(2, 4000, 4000)]


class Wandb:
    """Two types of wandb; each keeps what wandb would store."""

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
    return {name: torch.rand(2, *medium.shape, generator=generator) for name in NAMES}


@pytest.mark.parametrize("medium", MEDIA, ids=lambda medium: medium.name)
def test_wandb_receives_what_plays(medium):
    logged = []
    tracker = SimpleNamespace(name="wandb", log=lambda values, step: logged.append((values, step)))
    log_media([tracker], "samples", rows(medium), 7, medium, Wandb)
    expected = {
        "image": [],
        "video": [({"samples/clips": ("video", "gif", 5, (32, 32), "teacher, student, 1 step")}, 7)],
        "audio": [({f"samples/{name}": ("audio", 4000, 4000, 2, name) for name in NAMES}, 7)],
    }
    assert logged == expected[medium.name]


@pytest.mark.parametrize("medium", MEDIA, ids=lambda medium: medium.name)
def test_tensorboard_receives_what_plays(medium):
    seen = {}
    writer = SimpleNamespace(
        add_audio=lambda tag, sound, step, sample_rate: seen.update({tag: (tuple(sound.shape), sample_rate)}),
        file_writer=SimpleNamespace(add_summary=lambda summary, step: seen.update({"clips": summary})),
    )
    log_media([SimpleNamespace(name="tensorboard", writer=writer)], "samples", rows(medium), 7, medium)
    if isinstance(medium, Video):
        (value,) = seen.pop("clips").value
        with PillowImage.open(io.BytesIO(value.image.encoded_image_string)) as gif:
            assert (gif.format, gif.n_frames, gif.size) == ("GIF", 5, (32, 32))
    else:
        sounds = {f"samples/{name}": ((1, 4000), 4000) for name in NAMES}
        assert seen == ({} if isinstance(medium, Image) else sounds)


def test_other_trackers_receive_nothing():
    log_media([SimpleNamespace(name="aim")], "samples", rows(MEDIA[2]), 7, MEDIA[2])


def test_files_for_wandb_exist_until_they_are_logged():
    def log(values, step):
        assert values and all(Path(path).is_file() for path in values.values())

    wandb = SimpleNamespace(Audio=lambda path, caption: path)
    log_media([SimpleNamespace(name="wandb", log=log)], "samples", rows(MEDIA[2]), 1, MEDIA[2], wandb)
