"""The pocket video teacher's captions, parts and judges."""

import pytest
import torch
from diffusers import WanPipeline

from teachers.media.motion import MOTIONS
from teachers.pocket_video import CALL, CLIP, LENGTH, all_captions, balanced_labels, balanced_prompts, label_of
from teachers.pocket_video.captions import OBJECTS, captions, vague_captions
from teachers.pocket_video.judges import FEATURES, ClipJudge
from teachers.pocket_video.parts import (
    LATENT,
    make_autoencoder,
    make_scheduler,
    make_text_encoder,
    make_tokenizer,
    make_transformer,
)


def test_every_caption_names_its_class_and_motion():
    for label in range(len(OBJECTS)):
        for motion in range(len(MOTIONS)):
            assert all(label_of(caption) == (label, motion) for caption in captions(label, motion))
            known = [label_of(caption) for caption in vague_captions(label, motion)]
            assert set(known) == {(label, None), (None, motion)}
    assert label_of("a red car") == (None, None)
    assert label_of("A COAT Moving Left") == (4, 0)


def test_balanced_prompts_cycle_through_all_pairs():
    labels, prompts = balanced_labels(320), balanced_prompts(320)
    assert [tuple(pair) for pair in labels.tolist()] == [label_of(prompt) for prompt in prompts]
    assert len({tuple(pair) for pair in labels[:80].tolist()}) == 80
    assert len(set(prompts)) == 320
    assert set(prompts) <= set(all_captions())


def test_the_tokenizer_knows_every_word():
    tokenizer = make_tokenizer()
    encoded = tokenizer(all_captions()).input_ids
    assert max(map(len, encoded)) <= LENGTH
    assert not any(tokenizer.unk_token_id in ids for ids in encoded)
    assert len({tuple(ids) for ids in encoded}) == len(all_captions())
    assert tokenizer("a zebra", return_tensors="pt").input_ids.shape[1] > 3


@pytest.mark.slow
def test_the_parts_are_small_and_fit_together():
    vae, transformer = make_autoencoder(), make_transformer()
    sizes = [sum(parameter.numel() for parameter in part.parameters()) for part in (vae, transformer)]
    assert all(1.0e6 < size < 1.2e6 for size in sizes)
    with torch.no_grad():
        assert vae.encode(torch.zeros(1, *CLIP.shape)).latent_dist.mean.shape[1:] == LATENT
        assert vae.decode(torch.zeros(1, *LATENT)).sample.shape[1:] == CLIP.shape


@pytest.mark.slow
def test_the_parts_are_a_pipeline(tmp_path):
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=make_text_encoder(tokenizer),
        transformer=make_transformer(),
        vae=make_autoencoder(),
        scheduler=make_scheduler(),
    )
    pipeline.save_pretrained(tmp_path)
    loaded = WanPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    noise = torch.randn(2, *LATENT)
    call = {**CALL, "prompt": ["a coat moving left", "a bag"], "num_inference_steps": 2, "guidance_scale": 2.5}
    clips = [CLIP.received(pipe(**call, latents=noise, output_type="pt")) for pipe in (pipeline, loaded)]
    assert clips[0].shape == (2, *CLIP.shape)
    assert torch.equal(*clips)


def test_the_judge_has_features_and_logits():
    torch.manual_seed(0)
    judge = ClipJudge().eval()
    clips = torch.rand(3, *CLIP.shape)
    with torch.no_grad():
        assert judge(clips).shape == (3, len(OBJECTS))
        assert judge.features(clips).shape == (3, FEATURES)
    with pytest.raises(
        ValueError, match=r"the pocket video judge takes clips of shape \(3, 9, 32, 32\), got \(3, 8, 32, 3"
    ):
        judge(torch.rand(1, 3, 8, 32, 32))
