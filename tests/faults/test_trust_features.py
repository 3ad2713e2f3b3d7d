"""Hostile folders of feature extractors and CLIP models, which a stranger's distill.json can name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BitImageProcessor, CLIPModel, Dinov2Config, Dinov2Model

from eval.features.extractors import extractor
from eval.metrics.clip_score import ClipModel
from tests.commands import fewstep
from tests.eval.metrics.tiny_clip import tiny_clip
from tests.faults.hostile_folders import (
    MAP,
    TOKENIZER_MAP,
    Attack,
    config,
    executed,
    link,
    pickled,
    python,
    sharded,
    zipped,
)

WEIGHTS = "model.safetensors"
PROCESSOR_MAP = {"AutoImageProcessor": "evil_mod.Evil", "AutoProcessor": "evil_mod.Evil"}
ATTACKS: dict[str, Attack] = {
    "auto_map": config("config.json", auto_map=MAP),
    "auto_map of an unknown architecture": config("config.json", model_type="x", auto_map=MAP),
    "auto_map of another repository": config("config.json", auto_map={"AutoModel": "owner/name--evil_mod.Evil"}),
    "auto_map of the image processor": config("preprocessor_config.json", auto_map=PROCESSOR_MAP),
    "auto_map of the processor": config("processor_config.json", auto_map=PROCESSOR_MAP),
    "auto_map of the tokenizer": config("tokenizer_config.json", auto_map=TOKENIZER_MAP),
    "trust of a config": config("config.json", vision_config={"trust_remote_code": True}),
    "nested auto_map": config("config.json", vision_config={"auto_map": MAP}),
    "kernel of a repository": config("config.json", _attn_implementation="evil/kernel"),
    "nested kernel of a repository": config("config.json", vision_config={"attn_implementation": "evil/kernel"}),
    "image processor that is a function": config("preprocessor_config.json", image_processor_type="pipeline"),
    "processor class with a dot": config("processor_config.json", processor_class="evil_mod.Evil"),
    "architecture with a slash": config("config.json", model_type="../evil_mod"),
    "adapter": config("adapter_config.json", base_model_name_or_path="evil/base", peft_type="LORA"),
    "pickle": pickled(WEIGHTS, "pytorch_model.bin"),
    "zipped pickle": zipped(WEIGHTS, "pytorch_model.bin"),
    "pickle called safetensors": pickled(WEIGHTS, WEIGHTS),
    "shard above": sharded(WEIGHTS, "../outside.safetensors"),
    "absolute shard": sharded(WEIGHTS, "{root}/outside.safetensors"),
    "shard in a folder": sharded(WEIGHTS, "sub/outside.safetensors"),
    "shard that is a pickle": sharded(WEIGHTS, "pytorch_model.bin"),
    "linked weights": link(WEIGHTS),
    "linked config": link("config.json"),
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    """A CLIP and a DINOv2 model with random weights."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    tiny_clip(root / "clip")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **small)).save_pretrained(root / "dinov2")
    BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        root / "dinov2"
    )
    return root


@pytest.fixture(params=["clip", "dinov2"])
def model(request, originals, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(originals / request.param, folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.first_is_quick
def test_hostile_models_are_refused_and_run_nothing(model, attack, questions):
    kind = "clip" if json.loads((model / "config.json").read_text())["model_type"] == "clip" else "dinov2"
    ATTACKS[attack](model)
    loaders = [lambda: extractor(f"{kind}={model}"), lambda: extractor(f"{kind}={model}", allow_pickle=True)]
    for load in [*loaders, lambda: ClipModel(str(model))]:
        with pytest.raises(ValueError) as error:
            load()
        assert "\n" not in str(error.value)
        assert not executed(model)
    assert not questions


def test_code_that_nothing_names_is_left_alone(originals, tmp_path, questions):
    folder = tmp_path / "model"
    shutil.copytree(originals / "clip", folder)
    python("modeling_evil.py", "__init__.py", "custom_generate/generate.py", "clip.py")(folder)
    pickled(WEIGHTS, "pytorch_model.bin", keep=True)(folder)
    ClipModel(str(folder))
    extractor(f"clip={folder}")
    assert not executed(folder) and not questions


@pytest.mark.slow
def test_pickled_tensors_are_read_only_if_allowed(originals, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(originals / "clip", folder)
    torch.save(CLIPModel.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="transformers could not load"):
        extractor(f"clip={folder}")
    batch = torch.rand(2, 3, 28, 28)
    expected = extractor(f"clip={originals / 'clip'}")(batch)
    assert torch.equal(extractor(f"clip={folder}", allow_pickle=True)(batch), expected)
    assert fewstep("eval", "stats", tmp_path, "-o", tmp_path / "a.npz", "--features", f"clip={folder}") == 2
    assert "transformers could not load" in capsys.readouterr().err
