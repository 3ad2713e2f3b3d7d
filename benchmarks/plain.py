"""DMD and sCM as one plain script each: no recipe, no checkpoints, one process, no evaluation.

    python -m benchmarks.plain dmd|scm [--steps 50] [--out student.png]

A direct implementation with diffusers and PyTorch only, with fused optimizers, on the pocket teacher's data.
`benchmarks.step` compares the toolkit's training step with it, so it shares no code with the toolkit's loop. sCM's
tangent is `torch.func.jvp`.
"""

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import make_image_grid
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from teachers import pocket

GUIDANCE, START = 2.0, 700  # START: the timestep input of DMD's student
TIME_SCALE = 8  # timestep input of sCM's student per radian
Step = Callable[[], float]
SaveSamples = Callable[[Path], None]


def load() -> tuple[StableDiffusionPipeline, Tensor, Tensor, Tensor, Tensor]:
    """The pipeline, embeddings of all captions and of the empty prompt, real latents and a caption for each."""
    pipe = StableDiffusionPipeline.from_pretrained(pocket.PIPELINE, use_safetensors=True, safety_checker=None)
    pipe.unet.requires_grad_(False).eval()
    latents, labels = pocket.examples()
    captions = [caption for label in range(10) for caption in pocket.captions(label)]
    many = torch.tensor([len(pocket.captions(label)) for label in range(10)])
    chosen = (many.cumsum(0) - many)[labels] + (torch.rand(len(labels)) * many[labels]).long()
    with torch.no_grad():
        embeddings = pipe.encode_prompt(captions, "cpu", 1, do_classifier_free_guidance=False)[0]
        empty = pipe.encode_prompt([""], "cpu", 1, do_classifier_free_guidance=False)[0]
    return pipe, embeddings, empty, latents, chosen


def save(pipe: StableDiffusionPipeline, latents: Tensor, path: Path) -> None:
    """Decoded latents (N, 4, 8, 8) as a row of images."""
    with torch.no_grad():
        images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    make_image_grid(pipe.image_processor.postprocess(images), 1, len(images)).save(path)


def dmd(batch: int, lr: float = 3e-4) -> tuple[Step, SaveSamples]:
    """A step of DMD (two updates of the fake score, one of the student), and a function that saves samples."""
    pipe, embeddings, empty, _, _ = load()
    teacher = pipe.unet
    student, fake, ema = (copy.deepcopy(teacher).requires_grad_(trains) for trains in (True, True, False))
    optimizers = {n: torch.optim.AdamW(n.parameters(), lr, (0.9, 0.99), fused=True) for n in (student, fake)}
    table = pipe.scheduler.alphas_cumprod
    empty = empty.expand(batch, -1, -1)

    def coefficients(t: Tensor) -> tuple[Tensor, Tensor]:
        return table[t].sqrt()[:, None, None, None], (1 - table[t]).sqrt()[:, None, None, None]

    def batch_of_noise() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        prompts = embeddings[torch.randint(len(embeddings), (batch,))]
        return prompts, torch.randn(batch, 4, 8, 8), torch.randint(20, 800, (batch,)), torch.randn(batch, 4, 8, 8)

    def generate(network: torch.nn.Module, z: Tensor, prompts: Tensor) -> Tensor:
        alpha, sigma = coefficients(torch.full((len(z),), START))
        return (z - sigma * network(z, START, prompts).sample) / alpha

    def update(network: torch.nn.Module, loss: Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizers[network].step()
        optimizers[network].zero_grad()

    def step() -> float:
        for _ in range(2):
            prompts, z, t, noise = batch_of_noise()
            with torch.no_grad():
                x = generate(student, z, prompts)
            alpha, sigma = coefficients(t)
            error = fake(alpha * x + sigma * noise, t, prompts).sample - noise
            update(fake, (error / alpha).square().mean())
        prompts, z, t, noise = batch_of_noise()
        x = generate(student, z, prompts)
        alpha, sigma = coefficients(t)
        with torch.no_grad():
            x_t = alpha * x + sigma * noise
            both = teacher(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([prompts, empty])).sample
            with_prompt, without = both.chunk(2)
            real = (x_t - sigma * (without + GUIDANCE * (with_prompt - without))) / alpha
            guess = (x_t - sigma * fake(x_t, t, prompts).sample) / alpha
            gradient = (guess - real) / (x - real).abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-5)
        loss = 0.5 * (x - (x - gradient).detach()).square().mean()
        update(student, loss)
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(student.parameters()), 0.01)
        return loss.item()

    @torch.no_grad()
    def save_samples(path: Path) -> None:
        save(pipe, generate(ema, torch.randn(10, 4, 8, 8), embeddings[:10]), path)

    return step, save_samples


def scm(batch: int, lr: float = 3e-4) -> tuple[Step, SaveSamples]:
    """A step of sCM (the teacher's velocity, the student's tangent, one update), and a function that saves samples."""
    pipe, embeddings, empty, latents, chosen = load()
    teacher = pipe.unet
    student, ema = (copy.deepcopy(teacher).requires_grad_(trains) for trains in (True, False))
    optimizer = torch.optim.AdamW(student.parameters(), lr, (0.9, 0.99), fused=True)
    table = pipe.scheduler.alphas_cumprod
    angles = torch.atan2((1 - table).sqrt(), table.sqrt())
    empty = empty.expand(batch, -1, -1)

    def velocity(epsilon: Tensor, x: Tensor, t: Tensor) -> Tensor:
        sin, cos = t.sin()[:, None, None, None], t.cos()[:, None, None, None]
        return cos * epsilon - sin * (x - sin * epsilon) / cos

    def step() -> float:
        rows = torch.randint(len(latents), (batch,))
        x0, prompts = latents[rows], embeddings[chosen[rows]]
        proposed = torch.atan(torch.exp(0.3 + 1.4 * torch.randn(batch)))
        index = torch.searchsorted(angles, proposed).clamp(max=len(angles) - 1)
        t = angles[index]
        sin, cos = t.sin()[:, None, None, None], t.cos()[:, None, None, None]
        x = cos * x0 + sin * torch.randn_like(x0)

        def of_student(x: Tensor, t: Tensor) -> Tensor:
            return velocity(student(x, TIME_SCALE * t, prompts).sample, x, t)

        with torch.no_grad():
            both = teacher(torch.cat([x, x]), torch.cat([index, index]), torch.cat([prompts, empty])).sample
            with_prompt, without = both.chunk(2)
            drift = velocity(without + GUIDANCE * (with_prompt - without), x, t)
            along = sin * cos
            with sdpa_kernel(SDPBackend.MATH):
                value, derivative = torch.func.jvp(of_student, (x, t), (along * drift, along.flatten()))
            g = -(cos**2) * (value - drift) - (along * x + derivative)
            g = g / (g.flatten(1).norm(dim=1)[:, None, None, None] + 1)
        out = of_student(x, t)
        loss = (out - out.detach() - g).square().flatten(1).sum(1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(student.parameters()), 0.01)
        return loss.item()

    @torch.no_grad()
    def save_samples(path: Path) -> None:
        z, t = torch.randn(10, 4, 8, 8), angles[-1].expand(10)
        sin, cos = t.sin()[:, None, None, None], t.cos()[:, None, None, None]
        save(pipe, cos * z - sin * velocity(ema(z, TIME_SCALE * t, embeddings[:10]).sample, z, t), path)

    return step, save_samples


METHODS: dict[str, Callable[[int], tuple[Step, SaveSamples]]] = {"dmd": dmd, "scm": scm}


def main() -> None:
    """Train a few steps and save samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=list(METHODS), help="the method")
    parser.add_argument("--steps", type=int, default=50, help="steps (default: 50)")
    parser.add_argument("--batch-size", type=int, default=32, help="batch size (default: 32)")
    parser.add_argument("--out", type=Path, default=Path("student.png"), help="a row of the student's samples")
    args = parser.parse_args()
    step, save_samples = METHODS[args.method](args.batch_size)
    start = time.perf_counter()
    for number in range(args.steps):
        print(f"step {number}: loss {step():.4f}, {time.perf_counter() - start:.1f} s")
    save_samples(args.out)


if __name__ == "__main__":
    main()
