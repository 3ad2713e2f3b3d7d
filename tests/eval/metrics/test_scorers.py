"""PickScore, HPSv2 and object checks: their definitions, the models they take, and what a report says without them."""

import math

import pytest
import torch
from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, ResNetConfig

from eval.compare import compare
from eval.config.names import SCORERS
from eval.config.options import scorers
from eval.features.extractors import extractor
from eval.metrics.context import MetricContext
from eval.metrics.hpsv2 import HPSv2
from eval.metrics.objects import ObjectChecks, passes, requested
from eval.metrics.pickscore import PickScore
from tests.commands import eval_main as main
from tests.eval.metrics.tiny_clip import one_by_one, tiny_clip

PROMPTS = ["a photo of a bag", "a coat", "an ankle boot, seen from the side"]
LABELS = ["dog", "hot dog", "car", "person", "bus", "apple", "wine glass", "knife"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A small CLIP model with embeddings of the size of ViT-H/14's."""
    return tiny_clip(tmp_path_factory.mktemp("clip") / "tiny", projection=SCORERS["pickscore"].width)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector") / "tiny-detr"
    torch.manual_seed(0)
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    small |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 4}
    config = DetrConfig(use_timm_backbone=False, backbone=None, backbone_config=backbone, use_pretrained_backbone=False,
                        id2label=dict(enumerate(LABELS)), **small)  # fmt: skip
    DetrForObjectDetection(config).save_pretrained(folder)
    DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 32}).save_pretrained(folder)
    return folder


def context(**sources) -> MetricContext:
    pixels = extractor("pixels")
    return MetricContext(
        6, 0, torch.device("cpu"), pixels, 192, PROMPTS * 2, scorers={k: str(v) for k, v in sources.items()}
    )


@pytest.mark.slow
def test_scores_follow_their_definitions(clip):
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    cosines = torch.tensor(one_by_one(clip, images, PROMPTS))
    pick, hps = PickScore(context(pickscore=clip)), HPSv2(context(hpsv2=clip))
    assert cosines.min() < 0, "scores are not clipped at zero"
    torch.testing.assert_close(hps.score(images, PROMPTS), 100 * cosines.float(), atol=0.02, rtol=0)
    scale = math.exp(float(pick.model.model.logit_scale))
    assert scale != 100
    torch.testing.assert_close(pick.score(images, PROMPTS), scale * cosines.float(), atol=0.02, rtol=0)
    assert (pick.heading, hps.heading) == ("PickScore@6", "HPSv2@6")


def test_other_sizes_and_missing_folders_are_refused(tmp_path):
    small = tiny_clip(tmp_path / "small", projection=4)
    with pytest.raises(ValueError, match="--score pickscore=FOLDER must name PickScore, a CLIP ViT-H/14 with"):
        PickScore(context(pickscore=small))
    with pytest.raises(ValueError, match=r"could not load .*nowhere.* as in --score hpsv2=FOLDER"):
        HPSv2(context(hpsv2=tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["image_reward"], "ImageReward is not available, because transformers has no class"),
        (["clip_fid"], "CLIP-FID is not a score of --score but the distance of --features clip"),
        (["hpsv2"], "--score hpsv2 needs a folder with the model and its processor: --score hpsv2=FOLDER"),
        (["beauty"], 'must be one of pickscore, hpsv2, objects, each once, got "beauty"'),
        (["objects", "objects=x"], 'each once, got "objects=x"'),
    ],
)
def test_words_of_the_option_that_cannot_be_used_are_one_sentence(words, message, capsys):
    with pytest.raises(ValueError, match=message):
        scorers(words)
    assert main(["run", *(f"--score={word}" for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert scorers(["objects=a", "pickscore"]) == {"objects": "a", "pickscore": "yuvalkirstain/PickScore_v1"}


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("two dogs and a red car", {"dog": 2, "car": None}),
        ("a photo of three big red apples", {"apple": 3}),
        ("a hot dog next to people", {"hot dog": None, "person": None}),
        ("a carpet, a doghouse", {}),
        ("2 buses", {"bus": 2}),
        ("two cats and a dog, four wine glasses, knives", {"dog": None, "wine glass": 4, "knife": None}),
    ],
)
def test_objects_of_a_prompt(prompt, wanted):
    assert requested(prompt, LABELS) == wanted


def test_objects_pass_if_all_are_found_in_the_number_that_is_asked_for():
    found = [("dog", 0.95), ("dog", 0.92), ("dog", 0.5), ("car", 0.4)]
    assert passes({"dog": 2, "car": None}, found), "a number counts confident detections only"
    assert not passes({"dog": 3}, found) and not passes({"dog": 2, "bus": None}, found)
    assert not passes({"car": None}, [("car", 0.2)])


def test_object_checks_of_a_detector(detector):
    metric = ObjectChecks(context(objects=detector))
    images = torch.rand(3, 3, 40, 40)
    scores = metric.score(images, ["a dog", "a carpet", "two hot dogs"])
    assert scores.isnan().tolist() == [False, True, False] and set(scores[[0, 2]].tolist()) <= {0.0, 1.0}
    assert metric.heading == "Objects (tiny-detr)@6"


@pytest.mark.exhaustive
def test_scores_in_a_comparison_and_the_sentence_without_them(clip, detector, make_run, tmp_path, quick):
    chosen = [f"pickscore={clip}", f"objects={detector}"]
    report = compare([make_run()], tmp_path / "out", samples=6, batch_size=4, score=chosen, **quick)
    for row in report["rows"]:
        assert row["pickscore_interval"][0] <= row["pickscore"] <= row["pickscore_interval"][1]
        assert row["hpsv2"] is None
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "PickScore@6" in page and f"pickscore: {clip}" in page
