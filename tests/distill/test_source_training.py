"""Training of teachers with source images from a folder of pairs, and what is done with their students."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.commands import eval_main, fewstep


@pytest.fixture
def pairs(tmp_path):
    """A folder with six source images, masks, edited images and instructions."""
    folder, numbers, lines = tmp_path / "pairs", np.random.default_rng(0), []
    folder.mkdir()
    for i in range(6):
        pixels = numbers.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        mask = np.zeros((20, 24), np.uint8)
        mask[5:15, i : 12 + i] = 255
        files = {"original_image": f"{i}.png", "edited_image": f"{i}-edited.png", "mask": f"{i}-mask.png"}
        for name, value in zip(files.values(), (pixels, 255 - pixels, mask), strict=True):
            Image.fromarray(value).save(folder / name)
        lines.append(json.dumps({**files, "edit_prompt": f"invert it, number {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


METHODS = {
    "dmd": {"name": "dmd", "gan_weight": 0, "r1_weight": 0, "regression_weight": 0},
    "scm": {"name": "scm", "adaptation_steps": 1, "tangent_warmup": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method", "tier"),
    [("inpainting", "scm", "lora"), ("InstructPix2Pix", "dmd", "full")],
)
@pytest.mark.first_by_default
def test_train_sample_evaluate_and_check(name, method, tier, pairs, tiny_source, tmp_path, capsys):
    recipe = {
        "name": "edit",
        "output": str(tmp_path / "runs"),
        "teacher": {"path": str(tiny_source(name)[1]), "guidance": 3.0, "num_steps": 4},
        "method": METHODS[method],
        "data": {"images": str(pairs)},
        "memory": {"tier": tier, "rank": 2},
        "train": {"steps": 2, "batch_size": 2, "evaluate_every": 2, "evaluate_samples": 4, "evaluate_teacher_steps": 2},
        "evaluation": {"features": "pixels"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run, file = tmp_path / "runs" / "edit", tmp_path / "sample.png"
    assert fewstep("train", tmp_path / "recipe.yaml") == 0
    record = json.loads((run / "pipeline" / "distill.json").read_text())
    assert record["evaluation"]["prompts"] == "evaluation_sources"
    assert record["data"] == {"kind": "source images with instructions", "rows": 6}
    card = (run / "pipeline" / "README.md").read_text()
    masked = name == "inpainting"
    assert "pipeline_tag: image-to-image" in card
    assert ("image=image, mask_image=mask" if masked else "image=image") in card
    words = ["sample", run, "--prompt", "invert it", "--image", pairs / "0.png", "--out", file]
    words += ["--mask", pairs / "0-mask.png"] * masked
    assert fewstep(*words) == 0
    assert Image.open(file).size == (16, 16)
    assert fewstep(*words[:4], "--out", file) != 0
    assert fewstep("check", run) == 0
    words = [run, "--out", tmp_path / "report", "--samples", 4, "--batch-size", 2, "--device", "cpu"]
    assert eval_main([*words, *(["--prompts", pairs] if masked else [])]) == 0  # or the rows stored with the pipeline
    capsys.readouterr()
    assert eval_main([run, "--out", tmp_path / "report", "--samples", 4, "--prompts", "pocket"]) != 0
    assert "--prompts must be a folder of source images with instructions" in capsys.readouterr().err
    assert fewstep("demo", run) != 0
    assert "the demo has no input for a source image" in capsys.readouterr().err
