"""Stored pipelines: no path of the machine, and text encoders in float32."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_log

from teachers.loading.saving import save_pipeline
from teachers.loading.source import load_pipeline


@pytest.mark.slow
def test_stored_configurations_do_not_say_where_components_were_loaded(text_pipeline, tmp_path):
    pipeline = DiffusionPipeline.from_pretrained(text_pipeline)
    pipeline.save_pretrained(tmp_path / "stock")
    save_pipeline(pipeline, tmp_path / "ours")
    assert str(text_pipeline) in (tmp_path / "stock" / "unet" / "config.json").read_text()  # diffusers writes the path
    configs = sorted((tmp_path / "ours").rglob("*.json"))
    assert not any(str(text_pipeline) in file.read_text() for file in configs)
    stock = json.loads((tmp_path / "stock" / "unet" / "config.json").read_text())
    stock.pop("_name_or_path")
    assert json.loads((tmp_path / "ours" / "unet" / "config.json").read_text()) == stock
    assert json.loads((tmp_path / "ours" / "text_encoder" / "config.json").read_text())["dtype"] == "float32"
    DiffusionPipeline.from_pretrained(tmp_path / "ours")


@pytest.mark.slow
def test_reading_and_writing_weights_shows_no_bars(text_pipeline, tmp_path, capsys):
    pipeline = load_pipeline((StableDiffusionPipeline,), str(text_pipeline), dtype=torch.float32)
    save_pipeline(pipeline, tmp_path / "saved")
    assert capsys.readouterr().err == ""
    assert diffusers_log.is_progress_bar_enabled()
