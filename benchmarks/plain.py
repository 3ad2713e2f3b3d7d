"""DMD and sCM as one plain script of each: no recipe, no checkpoint, no second process, nothing to compare with.

    python -m benchmarks.plain dmd|scm [--steps 50] [--out student.png]

What a competent person writes in an afternoon with diffusers and PyTorch alone, fused optimizers and all, on the pocket
teacher's data. `benchmarks.step` times the toolkit's loop against it. sCM's tangent is `torch.func.jvp`, as usual.
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

GUIDANCE, START = 2.0, 700  # DMD's student is told this timestep
CLOCK = 8  # of sCM's student, ticks a radian
Step = Callable[[], float]
Picture = Callable[[Path], None]


def load() -> tuple[StableDiffusionPipeline, Tensor, Tensor, Tensor, Tensor]:
    """The pipeline, embeddings of all captions, the empty prompt's, real latents and a caption for each."""
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
    """Decoded latents (N, 4, 8, 8) as a row of pictures."""
    with torch.no_grad():
        images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    make_image_grid(pipe.image_processor.postprocess(images), 1, len(images)).save(path)


def dmd(batch: int, lr: float = 3e-4) -> tuple[Step, Picture]:
    """One step of DMD, two updates of the fake score and one of the student; and what draws the student's samples."""
    pipe, embeddings, empty, _, _ = load()
    teacher = pipe.unet
    student, fake, ema = (copy.deepcopy(teacher).requires_grad_(name != "average") for name in ("s", "f", "average"))
    optimizers = {n: torch.optim.AdamW(n.parameters(), lr, (0.9, 0.99), fused=True) for n in (student, fake)}
    table = pipe.scheduler.alphas_cumprod
    empty = empty.expand(batch, -1, -1)

    def coefficients(t: Tensor) -> tuple[Tensor, Tensor]:
        return table[t].sqrt()[:, None, None, None], (1 - table[t]).sqrt()[:, None, None, None]

    def draw() -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
            prompts, z, t, noise = draw()
            with torch.no_grad():
                x = generate(student, z, prompts)
            alpha, sigma = coefficients(t)
            error = fake(alpha * x + sigma * noise, t, prompts).sample - noise
            update(fake, (error / alpha).square().mean())
        prompts, z, t, noise = draw()
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
    def picture(path: Path) -> None:
        save(pipe, generate(ema, torch.randn(10, 4, 8, 8), embeddings[:10]), path)

    return step, picture


def scm(batch: int, lr: float = 3e-4) -> tuple[Step, Picture]:
    """One step of sCM, the teacher's slope, the student's tangent and one update; and what draws its samples."""
    pipe, embeddings, empty, latents, chosen = load()
    teacher = pipe.unet
    student, ema = (copy.deepcopy(teacher).requires_grad_(name != "average") for name in ("s", "average"))
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
        wanted = torch.atan(torch.exp(0.3 + 1.4 * torch.randn(batch)))
        index = torch.searchsorted(angles, wanted).clamp(max=len(angles) - 1)
        t = angles[index]
        sin, cos = t.sin()[:, None, None, None], t.cos()[:, None, None, None]
        x = cos * x0 + sin * torch.randn_like(x0)

        def of_student(x: Tensor, t: Tensor) -> Tensor:
            return velocity(student(x, CLOCK * t, prompts).sample, x, t)

        with torch.no_grad():
            both = teacher(torch.cat([x, x]), torch.cat([index, index]), torch.cat([prompts, empty])).sample
            with_prompt, without = both.chunk(2)
            drift = velocity(without + GUIDANCE * (with_prompt - without), x, t)
            along = sin * cos
            with sdpa_kernel(SDPBackend.MATH):
                value, slope = torch.func.jvp(of_student, (x, t), (along * drift, along.flatten()))
            g = -(cos**2) * (value - drift) - (along * x + slope)
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
    def picture(path: Path) -> None:
        z, t = torch.randn(10, 4, 8, 8), angles[-1].expand(10)
        sin, cos = t.sin()[:, None, None, None], t.cos()[:, None, None, None]
        save(pipe, cos * z - sin * velocity(ema(z, CLOCK * t, embeddings[:10]).sample, z, t), path)

    return step, picture


METHODS: dict[str, Callable[[int], tuple[Step, Picture]]] = {"dmd": dmd, "scm": scm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=list(METHODS))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("student.png"), help="a row of the student's samples")
    args = parser.parse_args()
    step, picture = METHODS[args.method](args.batch_size)
    begun = time.perf_counter()
    for number in range(args.steps):
        print(f"step {number}: loss {step():.4f}, {time.perf_counter() - begun:.1f} s")
    picture(args.out)


if __name__ == "__main__":
    main()
