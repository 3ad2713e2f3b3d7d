"""The trained parts of the pocket teacher: classifier, autoencoder, and text-to-image diffusion model."""

import copy
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTokenizer

from teachers.pocket.captions import CLASS_NAMES, captions
from teachers.pocket.classifier import Classifier, rgb01
from teachers.pocket.parts import LENGTH, make_autoencoder, make_text_encoder, make_unet, sd15_scheduler
from teachers.support.files import atomic_write


def cosine(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """The learning rate of a step: linear warm-up and a cosine to zero."""
    return peak * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def minimise(name, parameters, loss, steps, lr, weight_decay=1e-2, start=0, optimizer=None, after=None):
    """Minimise `loss(step)` by AdamW with a cosine schedule; `after(step)` is called after each update."""
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
    """The classifier of clothing, trained with shifts and noise."""
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
    """A KL autoencoder with a downsampling factor of 4; each latent channel has zero mean and unit variance."""
    torch.manual_seed(0)
    vae = make_autoencoder((16, 32, 32))
    x = images["train"]

    def loss(step: int) -> Tensor:
        batch = x[torch.randint(len(x), (64,))].expand(-1, 3, -1, -1)
        posterior = vae.encode(batch).latent_dist
        output = vae.decode(posterior.sample()).sample
        # Gaussian and Laplace likelihoods per pixel; the KL term has about the weight of a true likelihood.
        return F.mse_loss(output, batch) + 0.2 * F.l1_loss(output, batch) + 2e-6 * posterior.kl().mean()

    minimise("autoencoder", list(vae.parameters()), loss, steps, 2e-3, weight_decay=0.0)
    vae.eval().requires_grad_(False)
    standardise(vae, x[:5000].expand(-1, 3, -1, -1))
    return vae


@torch.no_grad()
def standardise(vae: AutoencoderKL, images: Tensor) -> None:
    """Standardise each latent channel by an affine map that is merged into the 1x1 convolutions around the latent."""
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
    """Mean latents (N, 4, 8, 8) of grey images (N, 1, 32, 32)."""
    batches = tqdm(images.split(500), desc="latents")
    return torch.cat([vae.encode(batch.expand(-1, 3, -1, -1)).latent_dist.mean for batch in batches])


# --- diffusion --------------------------------------------------------------------------------------------------------


def train_diffusion(latents: Tensor, labels: Tensor, tokenizer: CLIPTokenizer, steps: int, work: Path):
    """Train UNet and text encoder on epsilon with 10% of the captions dropped; returns the EMA of both."""
    torch.manual_seed(0)
    unet, text = make_unet(), make_text_encoder(tokenizer)
    both = torch.nn.ModuleDict({"unet": unet, "text": text})
    ema = copy.deepcopy(both).requires_grad_(False)
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
        ema.load_state_dict(saved["ema"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    batch = 128

    def loss(step: int) -> Tensor:
        rng = torch.Generator().manual_seed(step)
        rows = torch.randint(len(latents), (batch,), generator=rng)
        caption = first[labels[rows]] + (torch.rand(batch, generator=rng) * count[labels[rows]]).long()
        caption[torch.rand(batch, generator=rng) < 0.1] = 0
        timestep = ((torch.arange(batch) + torch.rand(batch, generator=rng)) / batch * 1000).long()  # stratified
        noise = torch.randn(latents[rows].shape, generator=rng)
        alpha = alphas[timestep][:, None, None, None]
        noisy = alpha.sqrt() * latents[rows] + (1 - alpha).sqrt() * noise
        distinct, index = caption.unique(return_inverse=True)
        embedding = text(tokens[distinct]).last_hidden_state[index]
        return F.mse_loss(unet(noisy, timestep, encoder_hidden_states=embedding).sample, noise)

    def after(step: int) -> None:
        decay = min(0.9995, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(ema.parameters()), [p.detach() for p in parameters], 1 - decay)
        if (step + 1) % 1000 == 0:
            stored = {
                "model": both.state_dict(),
                "ema": ema.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }
            with atomic_write(state) as temporary:
                torch.save(stored, temporary)

    minimise("diffusion", parameters, loss, steps, 1e-3, start=start, optimizer=optimizer, after=after)
    return ema["unet"].eval(), ema["text"].eval()
