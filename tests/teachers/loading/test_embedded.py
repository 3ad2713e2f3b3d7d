"""The embedded teachers: prompts, latents and judges by name, and one sentence where they are missing."""

import pytest
import torch

from distill.config.recipe import load
from distill.config.sections import DataRecipe
from distill.data.latents import EmbeddedLatents
from distill.data.plan import plan
from eval.features.embedded_judges import agreeing, agreement, arithmetic_agreement
from eval.features.media_extractors import extractor_for
from eval.metrics.reference import reference
from teachers import pocket
from teachers.describe import describe
from teachers.loading.embedded import EMBEDDED, locate, usual_size
from teachers.loading.prompts import read_prompts
from teachers.loading.registry import family_of, load_teacher
from teachers.media import Image, Video
from teachers.pocket_video import CLIP, balanced_labels, balanced_prompts
from tests.commands import fewstep
from tests.teachers.stand_in import moving_clips


@pytest.mark.slow
def test_the_image_teacher_is_as_it_was():
    assert locate("pocket") == str(pocket.PIPELINE) and usual_size("pocket") is None and usual_size(None) is None
    assert read_prompts("pocket") == pocket.balanced_prompts(160)
    latents, captions = EMBEDDED["pocket"].examples()
    assert torch.equal(latents, pocket.examples()[0])
    assert [pocket.label_of(caption) for caption in captions[:50]] == pocket.examples()[1][:50].tolist()


@pytest.mark.parametrize("name", [name for name in EMBEDDED if name != "pocket"])
def test_a_missing_teacher_is_one_sentence(name, tmp_path, monkeypatch, capsys):
    try:
        package = EMBEDDED[name].package
    except ValueError as error:
        assert str(error) == f"{EMBEDDED[name].title} is not part of this installation"
    else:
        monkeypatch.setattr(package, "FOLDER", tmp_path)
        monkeypatch.setattr(package, "PIPELINE", tmp_path / "pipeline")
        with pytest.raises(ValueError, match=rf'{EMBEDDED[name].title} is not in .*; make it with "python -m bench'):
            locate(name)
    assert fewstep("quickstart", "--medium", EMBEDDED[name].medium, "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {EMBEDDED[name].title} is not ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_name_gives_the_size_of_clips(pocket_video):
    teacher = load_teacher("pocket-video")
    assert teacher.medium == CLIP and family_of(locate("pocket-video")) == "wan"
    assert "9 frames of 32 x 32, 8 a second" in describe("pocket-video")
    recipe = load("pocket/video_scm")
    assert recipe.teacher.size == EMBEDDED["pocket-video"].size
    assert load("pocket/video_scm", ["teacher.size={frames: 5, height: 32, width: 32}"]).teacher.size["frames"] == 5


def test_a_name_gives_prompts_and_latents(pocket_video):
    assert read_prompts("pocket-video") == balanced_prompts(320)
    data = plan(DataRecipe(images="pocket-video"), True, True, Video)
    assert isinstance(data.latents, EmbeddedLatents) and len(data.captions) == 80
    assert data.summary() == "80 rows of the pocket video teacher's latents"
    with pytest.raises(
        ValueError, match=r"data\.images must be a folder or a dataset of images .*, got 'pocket-video'"
    ):
        plan(DataRecipe(images="pocket-video"), True, True, Image)
    with pytest.raises(ValueError, match=r"data\.images must be a folder or a dataset of clips .*, got 'pocket'"):
        plan(DataRecipe(images="pocket"), True, True, Video)


def test_a_name_gives_features_and_a_reference(pocket_video):
    extract = extractor_for("pocket-video", CLIP)
    assert extract(torch.rand(2, *CLIP.shape)).shape == (2, 68)
    assert extract.figure(500) == "Frechet distance (pocket-video@500)"
    assert reference("pocket-video", extract).mean.shape == (68,)
    with pytest.raises(ValueError, match="choose --features pocket-video or another --reference"):
        reference("pocket-video", extractor_for("motion", CLIP))


def test_agreement_needs_every_label_that_a_prompt_names():
    predicted = (torch.tensor([1, 1, 1, 1]), torch.tensor([2, 2, 2, 2]))
    wanted = [(1, 2), (1, 3), (None, 2), (None, None)]
    assert agreeing(predicted, wanted)[:3].tolist() == [1, 0, 1]
    assert agreeing(predicted, wanted)[3].isnan()


def test_the_motion_of_a_prompt_is_judged_without_a_network(pocket_video):
    prompts, labels = balanced_prompts(16), balanced_labels(16)
    clips = moving_clips(labels[:, 1])
    judge = arithmetic_agreement("pocket-video")
    assert judge(clips, prompts).tolist() == [1] * 16
    assert judge(clips, prompts[1:] + prompts[:1]).mean() < 0.5
    assert judge(clips[:1], ["a bag"]).isnan().all()
    assert arithmetic_agreement("pocket") is None and arithmetic_agreement("motion") is None
    whole = agreement("pocket-video", "cpu")(clips, prompts)
    assert ((whole == 0) | (whole == 1)).all()
