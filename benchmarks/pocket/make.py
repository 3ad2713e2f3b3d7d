"""Make the pocket teacher from photographs: classifier, autoencoder, text-to-image diffusion model, model card.

    python -m benchmarks.pocket.make ../shared/data/fashion_mnist.npz

About 50 minutes on two CPU cores. Each stage is kept in `--work` when it ends and the diffusion stage every 1,000
steps, so the same command goes on where a killed one stopped.
"""

import argparse
import copy
import math
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTokenizer

from benchmarks.pocket.card import write_card
from teachers.core.teacher import save_pipeline
from teachers.pocket import FOLDER
from teachers.pocket.captions import CLASS_NAMES, captions
from teachers.pocket.classifier import Classifier, rgb01
from teachers.pocket.parts import (
    LENGTH,
    make_autoencoder,
    make_text_encoder,
    make_tokenizer,
    make_unet,
    sd15_scheduler,
)
from teachers.support.files import atomic_write

TRAINING_LATENTS = 8000  # how many real latents ship with the pipeline
REFERENCE_FEATURES = 5000  # of how many real test images the features themselves ship, for precision and recall


def load_images(path: Path) -> dict[str, Tensor]:
    """The photographs as (N, 1, 32, 32) float32 in [-1, 1], padded with black, and their labels."""
    with np.load(path) as arrays:
        data = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    out: dict[str, Tensor] = {}
    for split in ("train", "test"):
        padded = F.pad(data[f"{split}_images"], (2, 2, 2, 2))[:, None]
        out[split] = padded.float() / 127.5 - 1
        out[f"{split}_labels"] = data[f"{split}_labels"].long()
    return out


def cosine(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    return peak * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def minimise(name, parameters, loss, steps, lr, weight_decay=1e-2, start=0, optimizer=None, after=None):
    """Run AdamW on `loss(step)` with a cosine schedule and a progress bar; `after(step)` follows each update."""
    optimizer = optimizer or torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)
    bar = tqdm(range(start, steps), desc=name, initial=start, total=steps, mininterval=5)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, steps, lr)
        value = loss(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if after:
            after(step)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{value.item():.4f}")


# --- classifier -------------------------------------------------------------------------------------------------------


def train_classifier(images: dict[str, Tensor], steps: int) -> Classifier:
    torch.manual_seed(0)
    model = Classifier().train()
    x, y = images["train"], images["train_labels"]

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(x), (128,))
        batch = x[rows]
        dx, dy = torch.randint(-2, 3, (2,)).tolist()
        batch = torch.roll(batch, (dy, dx), dims=(2, 3))
        batch = batch + 0.1 * torch.rand(()) * torch.randn_like(batch)
        return F.cross_entropy(model(rgb01(batch)), y[rows], label_smoothing=0.05)

    minimise("classifier", list(model.parameters()), loss, steps, 3e-3)
    return model.eval().requires_grad_(False)


# --- autoencoder ------------------------------------------------------------------------------------------------------


def train_autoencoder(images: dict[str, Tensor], steps: int) -> AutoencoderKL:
    """A 4x downsampling KL autoencoder whose latents have, channel by channel, zero mean and unit variance."""
    torch.manual_seed(0)
    vae = make_autoencoder((16, 32, 32))
    x = images["train"]

    def loss(step: int) -> Tensor:
        batch = x[torch.randint(len(x), (64,))].expand(-1, 3, -1, -1)
        posterior = vae.encode(batch).latent_dist
        output = vae.decode(posterior.sample()).sample
        # Per-pixel Gaussian and Laplace likelihoods, and the KL term at about the weight of a true likelihood.
        return F.mse_loss(output, batch) + 0.2 * F.l1_loss(output, batch) + 2e-6 * posterior.kl().mean()

    minimise("autoencoder", list(vae.parameters()), loss, steps, 2e-3, weight_decay=0.0)
    vae.eval().requires_grad_(False)
    standardise(vae, x[:5000].expand(-1, 3, -1, -1))
    return vae


@torch.no_grad()
def standardise(vae: AutoencoderKL, images: Tensor) -> None:
    """Fold an affine map into the 1x1 convolutions around the latent, so that each channel is standardised."""
    latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in images.split(500)])
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    channels = len(mean)
    vae.quant_conv.weight[:channels] /= std[:, None, None, None]
    vae.quant_conv.bias[:channels] = (vae.quant_conv.bias[:channels] - mean) / std
    vae.quant_conv.bias[channels:] -= 2 * std.log()  # the posterior's log-variances
    vae.post_quant_conv.bias += (vae.post_quant_conv.weight[:, :, 0, 0] * mean).sum(dim=1)
    vae.post_quant_conv.weight *= std[None, :, None, None]


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    batches = tqdm(images.split(500), desc="latents")
    return torch.cat([vae.encode(batch.expand(-1, 3, -1, -1)).latent_dist.mean for batch in batches])


# --- diffusion --------------------------------------------------------------------------------------------------------


def train_diffusion(latents: Tensor, labels: Tensor, tokenizer: CLIPTokenizer, steps: int, work: Path):
    """UNet and text encoder together, epsilon prediction, a tenth of the captions dropped; returns their EMAs."""
    torch.manual_seed(0)
    unet, text = make_unet(), make_text_encoder(tokenizer)
    both = torch.nn.ModuleDict({"unet": unet, "text": text})
    averaged = copy.deepcopy(both).requires_grad_(False)
    phrasings = [captions(label) for label in range(len(CLASS_NAMES))]
    tokens = tokenizer(
        [""] + [c for group in phrasings for c in group], padding="max_length", max_length=LENGTH, return_tensors="pt"
    ).input_ids
    first = torch.tensor([1] + [len(group) for group in phrasings]).cumsum(0)[:-1]
    count = torch.tensor([len(group) for group in phrasings])
    alphas = sd15_scheduler().alphas_cumprod
    parameters = list(both.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-2)
    state, start = work / "diffusion.pt", 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        both.load_state_dict(saved["model"])
        averaged.load_state_dict(saved["averaged"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    batch = 128

    def loss(step: int) -> Tensor:
        draw = torch.Generator().manual_seed(step)
        rows = torch.randint(len(latents), (batch,), generator=draw)
        caption = first[labels[rows]] + (torch.rand(batch, generator=draw) * count[labels[rows]]).long()
        caption[torch.rand(batch, generator=draw) < 0.1] = 0
        timestep = ((torch.arange(batch) + torch.rand(batch, generator=draw)) / batch * 1000).long()  # stratified
        noise = torch.randn(latents[rows].shape, generator=draw)
        alpha = alphas[timestep][:, None, None, None]
        noisy = alpha.sqrt() * latents[rows] + (1 - alpha).sqrt() * noise
        asked, index = caption.unique(return_inverse=True)
        embedding = text(tokens[asked]).last_hidden_state[index]
        return F.mse_loss(unet(noisy, timestep, encoder_hidden_states=embedding).sample, noise)

    def after(step: int) -> None:
        decay = min(0.9995, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(averaged.parameters()), [p.detach() for p in parameters], 1 - decay)
        if (step + 1) % 1000 == 0:
            stored = {
                "model": both.state_dict(),
                "averaged": averaged.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }
            with atomic_write(state) as temporary:
                torch.save(stored, temporary)

    minimise("diffusion", parameters, loss, steps, 1e-3, start=start, optimizer=optimizer, after=after)
    return averaged["unet"].eval(), averaged["text"].eval()


# --- everything -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def reference_statistics(classifier: Classifier, images: Tensor) -> dict[str, Tensor]:
    features = torch.cat([classifier.features(rgb01(batch)) for batch in images.split(500)]).double()
    some = features[:REFERENCE_FEATURES].half()
    return {"mean": features.mean(0), "covariance": features.T.cov(), "features": some.contiguous()}


def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in tensors.items()}


def cached(path: Path, build, load):
    """`load(path)` where a finished stage lies there, else `build()` it, saved through a temporary name."""
    if path.exists():
        return load(path)
    value = build()
    with atomic_write(path) as temporary:
        torch.save(value.state_dict() if isinstance(value, torch.nn.Module) else value, temporary)
    return value


def into(module: torch.nn.Module):
    def load(path: Path) -> torch.nn.Module:
        module.load_state_dict(torch.load(path, weights_only=True))
        return module.eval().requires_grad_(False)

    return load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="an .npz with train_images, train_labels, test_images, test_labels")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where the weights go (default: inside the package)")
    parser.add_argument("--work", type=Path, default=Path("runs/make-pocket"), help="where unfinished work is kept")
    parser.add_argument("--classifier-steps", type=int, default=3000)
    parser.add_argument("--autoencoder-steps", type=int, default=3000)
    parser.add_argument("--diffusion-steps", type=int, default=12000)
    args = parser.parse_args()
    if not args.data.is_file():
        parser.error(f"there is no file {args.data}; give the path of the Fashion-MNIST .npz")
    args.work.mkdir(parents=True, exist_ok=True)
    images = load_images(args.data)

    classifier = cached(
        args.work / "classifier.pt", lambda: train_classifier(images, args.classifier_steps), into(Classifier())
    )
    vae_path = args.work / "vae"
    if not vae_path.exists():
        trained = train_autoencoder(images, args.autoencoder_steps)
        with atomic_write(vae_path) as temporary:
            trained.save_pretrained(temporary)
    vae = AutoencoderKL.from_pretrained(vae_path)
    latents = cached(
        args.work / "latents.pt", lambda: encode(vae, images["train"]), lambda p: torch.load(p, weights_only=True)
    )
    tokenizer = make_tokenizer(args.work / "tokenizer")
    unet, text = train_diffusion(latents, images["train_labels"], tokenizer, args.diffusion_steps, args.work)

    staged = args.work / "weights"
    shutil.rmtree(staged, ignore_errors=True)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=sd15_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    save_pipeline(pipeline.to(torch.float16), staged / "pipeline")
    save_file(half(classifier.state_dict()), staged / "classifier.safetensors")
    save_file(reference_statistics(classifier, images["test"]), staged / "reference.safetensors")
    save_file(
        half(
            {"latents": latents[:TRAINING_LATENTS], "labels": images["train_labels"][:TRAINING_LATENTS].to(torch.uint8)}
        ),
        staged / "latents.safetensors",
    )
    write_card(staged, classifier, images)
    shutil.rmtree(args.out, ignore_errors=True)
    shutil.copytree(staged, args.out)
    print(f"The pocket teacher lies in {args.out}")


if __name__ == "__main__":
    main()
