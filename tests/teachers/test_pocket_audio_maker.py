"""The stages that make the pocket audio teacher, at a tiny size."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_oobleck import Snake1d

from benchmarks.pocket.audio.codec import Codec, FastSnake, start_from_principal_components
from benchmarks.pocket.audio.data import render
from benchmarks.pocket.audio.transformer import Denoiser
from teachers.pocket_audio.parts import LATENT_CHANNELS, SAMPLES, make_autoencoder, make_scheduler, make_tokenizer


def tones(count: int) -> torch.Tensor:
    """16-bit audio (count, SAMPLES) of twenty sinusoids each, weaker at higher frequencies."""
    rng = torch.Generator().manual_seed(0)
    frequency = 0.5 * torch.rand(count, 20, 1, generator=rng)
    sinusoids = torch.sin(2 * torch.pi * frequency * torch.arange(SAMPLES)) / (0.02 + frequency)
    return (200 * sinusoids.sum(1)).short()


def test_rendering_needs_its_package(tmp_path, monkeypatch):
    font = tmp_path / "font.sf2"
    monkeypatch.setitem(sys.modules, "tinysoundfont", None)
    with pytest.raises(ValueError, match=r"font\.sf2 needs the package tinysoundfont: pip install tinysoundfont"):
        render(font, 1, 0)


def test_a_damaged_soundfont_is_named(tmp_path, monkeypatch):
    """The package is replaced, because its installation needs headers of audio devices."""

    def sfload(path):
        raise RuntimeError(f"Could not load {path}")

    package = SimpleNamespace(Synth=lambda **options: SimpleNamespace(sfload=sfload))
    monkeypatch.setitem(sys.modules, "tinysoundfont", package)
    font = tmp_path / "font.sf2"
    font.write_bytes(b"RIFF" + bytes(100))
    with pytest.raises(ValueError, match=r"font\.sf2 cannot be used: .*Could not load"):
        render(font, 1, 0)


def test_fast_snake_is_the_snake_of_diffusers():
    snake = Snake1d(3).double()
    snake.alpha.data.normal_(), snake.beta.data.normal_()
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    wanted, got = snake(x), FastSnake.apply(x, snake.alpha.exp(), snake.beta.exp() + 1e-9)
    weight = torch.randn_like(wanted)
    inputs = (x, snake.alpha, snake.beta)
    torch.testing.assert_close(got, wanted)
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), inputs),
        torch.autograd.grad((wanted * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_the_codec_starts_from_principal_components_and_keeps_its_output_when_finished():
    torch.manual_seed(0)
    audio, codec = tones(8), Codec().train()
    start_from_principal_components(codec.vae, audio)
    x = audio[:, None].float() / 32767
    with torch.no_grad():
        latents = codec.vae.encoder(x[:2])[:, :LATENT_CHANNELS]
        for _ in range(100):  # running statistics of the latents
            codec.norm(latents)
        wanted = codec.eval()(x[:2], torch.zeros(2, LATENT_CHANNELS, 128))
        error = F.mse_loss(wanted, x[:2]) / x[:2].square().mean()
        loaded = Codec()
        loaded.load_state_dict(codec.state_dict())
        vae = loaded.finish(audio)
        posterior = vae.encode(x[:2]).latent_dist
        got = vae.decode(posterior.mean).sample
    assert error < 0.3
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    assert posterior.std.sub(0.05).abs().max() < 1e-3


@pytest.mark.slow
def test_the_denoiser_is_called_as_the_pipeline_calls_it():
    from diffusers import StableAudioPipeline

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = Denoiser(tokenizer).eval()
    pipeline = StableAudioPipeline(
        vae=make_autoencoder(),
        text_encoder=model.text,
        projection_model=model.projection,
        tokenizer=tokenizer,
        transformer=model.transformer,
        scheduler=make_scheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    prompts, seen = ["a flute playing a C4", "piano, C3"], {}

    def spy(_, args, kwargs, output):
        seen.setdefault("call", (args, kwargs, output[0]))

    model.transformer.register_forward_hook(spy, with_kwargs=True)
    pipeline(prompts, num_inference_steps=2, guidance_scale=2.0, output_type="latent")
    (noisy, timestep), _, wanted = seen["call"]
    encoded = tokenizer(prompts * 2, padding="max_length", max_length=16, return_tensors="pt")
    dropped = torch.tensor([True, True, False, False])
    with torch.no_grad():
        got = model(noisy, timestep.expand(4) * torch.pi / 2, encoded.input_ids, encoded.attention_mask, dropped)
    torch.testing.assert_close(got, wanted)
