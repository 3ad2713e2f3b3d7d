"""Fixtures of all tests: tiny random pipelines with the architecture of the pocket teacher, and untrained runs.

`tests.conftest` loads this module in the processes that run tests. It imports torch, diffusers and transformers.
"""

import json
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, StableDiffusionPipeline, UNet2DModel
from safetensors.torch import save_file
from transformers import CLIPTokenizer

import teachers.pocket
import teachers.pocket_video
from teachers.pocket.classifier import FEATURES, Classifier
from teachers.pocket.parts import make_autoencoder, make_text_encoder, make_tokenizer, make_unet, sd15_scheduler
from tests.teachers import stand_in
from tests.teachers import tiny_media as media
from tests.teachers.saved import saved
from tests.teachers.tiny_sources import SOURCE_BUILDERS

if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the cores: one thread each, commands included
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, whichever tests ran before it."""
    torch.default_generator.manual_seed(0)  # torch.manual_seed also formats a stack for each kind of device
    np.random.seed(0)
    random.seed(0)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """The messages that the modules of this project log as warnings or above.

    pytest's own `caplog` is switched off: it visits every logger of every library six times for each test.
    """
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("distill", "eval", "teachers")]
    for logger in loggers:
        logger.addHandler(handler)
    yield messages
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> CLIPTokenizer:
    """The tokenizer of the pocket teacher."""
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def text_pipeline(tmp_path_factory, tokenizer) -> Path:
    """Folder of a text-to-image pipeline with random weights: 32 x 32 images, 8 x 8 latents."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher")
    StableDiffusionPipeline(
        vae=make_autoencoder((8, 8, 8)),
        text_encoder=make_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=make_unet(),
        scheduler=sd15_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory, tokenizer) -> Callable[[str], tuple[str, Path]]:
    """Function tiny_source(name) -> (family, folder) of a saved random pipeline with a source image."""
    return saved(tmp_path_factory.mktemp("sources"), tokenizer, SOURCE_BUILDERS)


@pytest.fixture(scope="session")
def unconditional_pipeline(tmp_path_factory) -> Path:
    """Folder of a DDPMPipeline with random weights: 16 x 16 images, no prompts, no latents."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("unconditional") / "pipeline"
    network = UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
    )
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def pocket_weights(tmp_path, monkeypatch) -> Path:
    """Replaces the pocket teacher's weights by an untrained classifier and random reference statistics."""
    torch.manual_seed(1)
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(Classifier().state_dict(), folder / "classifier.safetensors")
    reference = {"mean": torch.rand(FEATURES).double(), "covariance": torch.eye(FEATURES).double()}
    save_file(reference, folder / "reference.safetensors")
    monkeypatch.setattr(teachers.pocket, "FOLDER", folder)
    return folder


@pytest.fixture(scope="session")
def make_run_in(text_pipeline) -> Callable[..., Path]:
    """Function that writes a run with the teacher's pipeline and a distill.json; keywords change its entries."""

    def make(root: Path, name: str = "student", pipeline: Path = text_pipeline, **changes) -> Path:
        run = root / "runs" / name.replace("/", "_").replace("<", "_")
        folder = run / "pipeline"
        folder.mkdir(parents=True)
        shutil.copytree(pipeline, folder, dirs_exist_ok=True)
        stored = {
            "format": 1,
            "version": "0.1.0",
            "name": name,
            "method": "dmd",
            "teacher": {
                "family": "stable_diffusion",
                "path": str(pipeline),
                "call": {"num_inference_steps": 3, "guidance_scale": 2.0},
            },
            "calls": [{"num_steps": 1, "call": {"num_inference_steps": 1, "guidance_scale": 1.0}}],
            "evaluation": {"prompts": "pocket", "features": "pixels", "reference": None},
            "cost": {"steps": 600, "seconds": 210.5, "samples": 38400, "device": "cpu"},
        }
        (folder / "distill.json").write_text(json.dumps(stored | changes))
        return run

    return make


@pytest.fixture
def make_run(tmp_path, make_run_in) -> Callable[..., Path]:
    """`make_run_in` the test's folder."""
    return partial(make_run_in, tmp_path)


@pytest.fixture(scope="session")
def tiny_media(tmp_path_factory, tokenizer) -> Callable[[str], tuple[str, Path, dict[str, float]]]:
    """Function tiny_media(name) -> (family, folder, size) of a saved random pipeline of clips or sounds."""
    return saved(tmp_path_factory.mktemp("tiny_media"), tokenizer, media.BUILDERS)


@pytest.fixture(scope="session")
def pocket_video_weights(tmp_path_factory) -> Path:
    """The folder of a pocket video teacher with random weights."""
    return stand_in.write_weights(tmp_path_factory.mktemp("pocket_video") / "weights")


@pytest.fixture
def pocket_video(pocket_video_weights, monkeypatch) -> Path:
    """The same folder; "pocket-video" names it."""
    monkeypatch.setattr(teachers.pocket_video, "FOLDER", pocket_video_weights)
    monkeypatch.setattr(teachers.pocket_video, "PIPELINE", pocket_video_weights / "pipeline")
    return pocket_video_weights
