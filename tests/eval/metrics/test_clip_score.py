"""CLIP scores against their definition and the model's own forward pass, their names, and users' mistakes."""

import pytest
import torch
from transformers import BertConfig, BertModel, CLIPProcessor, CLIPVisionConfig

from eval.compare import compare
from eval.metrics.clip_score import ClipModel, architecture_name
from tests.commands import eval_main as main
from tests.eval.metrics.tiny_clip import one_by_one, tiny_clip

PROMPTS = ["a photo of a bag", "a coat", "an ankle boot, seen from the side"]


def images(count: int = 3, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder with a small CLIP model with random weights and its processor."""
    return tiny_clip(tmp_path_factory.mktemp("clip") / "tiny-clip")


@pytest.mark.slow
def test_score_follows_its_definition(clip):
    score = ClipModel(str(clip))
    batch, prompts = images(12), [p for p in PROMPTS for _ in range(4)]
    expected = [100 * max(0.0, cosine) for cosine in one_by_one(clip, batch, prompts)]
    assert 0 in expected, "a negative cosine has score 0"
    assert max(expected) > 1
    assert score(batch, prompts).tolist() == pytest.approx(expected, abs=0.02)
    assert score(batch[:5], prompts[:5]).tolist() == pytest.approx(expected[:5], abs=0.02), "for any batch size"


def test_long_prompts_are_cut(clip):
    score = ClipModel(str(clip))
    assert score.longest == 24
    long = "a photo of a bag " * 40
    torch.testing.assert_close(score(images(1), [long]), score(images(1), [long + "and a coat"]))


def test_figures_are_named_after_the_model(clip):
    assert ClipModel(str(clip)).name == "CLIP-tiny-clip"
    assert architecture_name(CLIPVisionConfig(hidden_size=768, num_hidden_layers=12, patch_size=16)) == "ViT-B/16"
    large = CLIPVisionConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, patch_size=14, image_size=336
    )
    assert architecture_name(large) == "ViT-L/14-336"


def test_missing_models_and_other_architectures_are_refused(tmp_path, clip):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=9, **sizes)).save_pretrained(tmp_path / "bert")
    CLIPProcessor.from_pretrained(clip).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="is a bert model"):
        ClipModel(str(tmp_path / "bert"))
    with pytest.raises(ValueError, match=r"transformers could not load .*nowhere.* as in --clip FOLDER"):
        ClipModel(str(tmp_path / "nowhere"))


@pytest.mark.exhaustive
def test_scores_in_a_comparison(clip, make_run, tmp_path, quick):
    report = compare([make_run()], tmp_path / "out", samples=6, batch_size=4, clip=str(clip), **quick)
    assert report["clip"] == {"source": str(clip), "figure": "CLIP-tiny-clip@6"}
    rows = report["rows"]
    for row in rows:
        assert row["clip_interval"][0] <= row["clip_score"] <= row["clip_interval"][1]
    highest = max(row["clip_score"] for row in rows)
    assert all(row["clip_best"] for row in rows if row["clip_score"] == highest)
    page, card = (tmp_path / "out/report.html").read_text(), (tmp_path / "out/model-index.yaml").read_text()
    assert "CLIP-tiny-clip@6" in page
    assert str(clip) in page, "the protocol names the model"
    assert 'type: "clip_score"' in card
    again = compare([tmp_path / "runs/student"], tmp_path / "out", samples=6, batch_size=4, clip=str(clip), **quick)
    assert all(row["from_cache"] for row in again["rows"])
    assert [row["clip_score"] for row in again["rows"]] == [row["clip_score"] for row in rows]

    without = compare([tmp_path / "runs/student"], tmp_path / "out", samples=6, batch_size=4, **quick)
    assert without["rows"][0]["clip_score"] is None
    assert "CLIP" not in (tmp_path / "out/report.md").read_text()


@pytest.mark.slow
def test_missing_prompts_or_model_are_one_sentence(clip, make_run, unconditional_pipeline, tmp_path, capsys):
    run, out = make_run(), ["--out", str(tmp_path / "out")]
    assert main([str(run), "--clip", str(tmp_path / "nowhere"), *out]) == 2
    assert "could not load" in capsys.readouterr().err
    assert main([str(unconditional_pipeline), "--clip", str(clip), "--reference", "x", *out]) == 2
    assert "omit --clip" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
