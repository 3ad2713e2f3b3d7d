"""The stages that make the pocket video teacher, at a tiny size."""

import argparse
import json

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file

from benchmarks.pocket.photographs import load_photographs
from benchmarks.pocket.video.autoencoder import decode, encode, standardise
from benchmarks.pocket.video.data import random_clips, render
from benchmarks.pocket.video.make import balanced_rows, run
from benchmarks.pocket.video.transformer import TIMESTEPS, Denoiser
from teachers.media.motion import MOTIONS, motion_labels
from teachers.pocket_video import CALL
from teachers.pocket_video.parts import CLIP, LATENT, make_autoencoder, make_scheduler, make_tokenizer


def photographs(count: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """L-shaped objects of several brightnesses on black."""
    pictures = torch.zeros(count, 28, 28, dtype=torch.uint8)
    pictures[:, 6:22, 8:14] = 200
    pictures[:, 18:24, 8:22] = 255
    return pictures, torch.arange(count) % 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": None}, "cannot be used: the key"),
        (
            {"train_images": np.zeros((4, 32, 32), np.uint8)},
            r"\(N, 28, 28\) as bytes in train_images, got uint8 \(4, 32",
        ),
        ({"train_labels": np.zeros(3, np.uint8)}, r"a class for each photograph in train_labels, got uint8 \(3,\)"),
        ({"train_labels": np.full(4, 10)}, "classes from 0 to 9 in train_labels, got 10 to 10"),
        (None, "cannot be used"),
    ],
)
def test_wrong_photographs_are_named(change, message, tmp_path):
    file = tmp_path / "photographs.npz"
    arrays = {"train_images": np.zeros((4, 28, 28), np.uint8), "train_labels": np.zeros(4, np.uint8)}
    np.savez(file, **{key: value for key, value in (arrays | (change or {})).items() if value is not None})
    if change is None:
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"photographs\.npz .*{message}"):
        load_photographs(file, "train")


def test_photographs_move_as_they_should():
    pictures, _ = photographs(32)
    motions = torch.arange(32) % len(MOTIONS)
    clips = render(pictures, motions, torch.Generator().manual_seed(0))
    assert clips.shape == (32, *CLIP.shape)
    assert clips.min() == -1
    assert torch.equal(motion_labels(clips / 2 + 0.5), motions)


def test_clips_depend_on_their_seed_only():
    one, two = (random_clips(*photographs(), 4, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


@pytest.mark.slow
def test_latents_are_standardised_and_decoded_as_the_pipeline_decodes_them():
    torch.manual_seed(0)
    vae = standardise(make_autoencoder().eval(), *photographs(), count=16)
    clips, _ = random_clips(*photographs(), 16, torch.Generator().manual_seed(-1))
    latents = encode(vae, clips)
    assert latents.mean(dim=(0, 2, 3, 4)).abs().max() < 1e-3
    assert (latents.std(dim=(0, 2, 3, 4)) - 1).abs().max() < 1e-3
    tokenizer = make_tokenizer()
    model = Denoiser(tokenizer).eval()
    pipeline = WanPipeline(
        tokenizer=tokenizer, text_encoder=model.text, transformer=model.transformer, vae=vae, scheduler=make_scheduler()
    )
    pipeline.set_progress_bar_config(disable=True)
    seen = []

    def spy(*call):
        seen.append(call)

    model.transformer.register_forward_hook(spy, with_kwargs=True)
    prompts = ["a coat moving left", "a bag"]
    call = {**CALL, "num_inference_steps": 2, "guidance_scale": 1.0, "latents": torch.randn(2, *LATENT)}
    last = pipeline(prompts, **call, output_type="latent").frames
    expected = CLIP.received(pipeline(prompts, **call, output_type="pt"))
    torch.testing.assert_close(decode(vae, last), expected, rtol=1e-4, atol=1e-4)

    _, _, arguments, output = seen[0]
    encoded = tokenizer(prompts, padding="max_length", max_length=16, return_tensors="pt")
    level = arguments["timestep"].float() / TIMESTEPS
    with torch.no_grad():
        got = model(arguments["hidden_states"], level, encoded.input_ids, encoded.attention_mask)
    torch.testing.assert_close(got, output[0])


def test_shipped_latents_are_balanced():
    labels = torch.stack([torch.arange(400) % 10, torch.arange(400) // 10 % 8], dim=1)
    rows = balanced_rows(labels, 2)
    assert len(rows) == len(set(rows.tolist())) == 160
    assert labels[rows[:2]].tolist() == [[0, 0], [0, 0]]


@pytest.mark.exhaustive
def test_the_maker_runs_from_photographs_to_the_model_card(tmp_path, monkeypatch):
    pictures, labels = photographs(40)
    stored = {
        f"{split}_{name}": value.numpy().astype(np.uint8)
        for split in ("train", "test")
        for name, value in (("images", pictures), ("labels", labels))
    }
    np.savez(tmp_path / "photographs.npz", **stored)
    assert load_photographs(tmp_path / "photographs.npz", "test")[0].shape == (40, 28, 28)
    from benchmarks.pocket.video import card, make

    monkeypatch.setattr(make, "HELD_OUT", 40)
    monkeypatch.setattr(card, "STEPS", 4)
    args = argparse.Namespace(
        photographs=tmp_path / "photographs.npz",
        out=tmp_path / "out",
        work=tmp_path / "work",
        judge_steps=2,
        autoencoder_steps=2,
        encoded=40,
        transformer_steps=2,
        autoencoder_batch=2,
        transformer_batch=2,
        samples=20,
        until="latents",
    )
    run(args)
    assert not args.out.exists()
    args.until = "card"
    run(args)
    figures = json.loads((args.out / "figures.json").read_text())
    assert figures["real_motion"] > 0.9
    assert [row["guidance"] for row in figures["rows"]] == [1.0, 2.5]
    assert "Wan pipeline" in (args.out / "pipeline" / "README.md").read_text()
    assert load_file(args.out / "reference.safetensors")["mean"].shape == (68,)
    assert sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file()) < 6e6
