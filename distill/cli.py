"""The command line `fewstep`. Arguments are parsed before torch is imported, so that help is immediate."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from distill.config.shipped import accelerate_file, recipe_file
from distill.recipes import recipes
from eval.__main__ import ALLOW_PICKLE, demo, evaluate
from teachers.__main__ import describe, families
from teachers.support.errors import add_debug_option, run_click
from teachers.support.threads import limit_threads

PATH = click.Path(path_type=Path)
RECIPE = click.argument("recipe")
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
CONFIG = click.option(
    "--config", metavar="NAME", help="Start accelerate's launcher with this configuration: a name (ddp) or a file."
)
PROCESSES = click.option(
    "--num-processes", type=click.IntRange(min=1), help="Start this many processes with accelerate's launcher."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fewstep")
def fewstep() -> None:
    """Turn a diffusion model into a one- or two-step model, and measure what that costs and gains.

    \b
    Examples:
      fewstep quickstart
      fewstep train pocket/dmd
      fewstep eval runs/pocket-dmd
    """


@fewstep.command()
@RECIPE
@OVERRIDES
@CONFIG
@PROCESSES
@click.option(
    "--dry-run", is_flag=True, help="Check everything, print the plan and the estimated hours; train nothing."
)
def train(recipe: str, overrides: Sequence[str], config: str | None, num_processes: int | None, dry_run: bool) -> int:
    """Train a student by RECIPE: a YAML file, or the name of a shipped recipe (`fewstep recipes list`).

    KEY=VALUE overrides a key of the recipe. Ctrl-C stops the run after its current step, with exit code 130. Run the
    same command again to resume.

    \b
    Examples:
      fewstep train pocket/dmd
      fewstep train pocket/scm train.steps=500 name=short
      fewstep train sd15_dmd --config ddp --num-processes 4
      fewstep train sd15_dmd_24gb --dry-run
    """
    if dry_run:
        if config or num_processes:
            raise click.UsageError("--dry-run measures one process; `fewstep memory` has --config and --num-processes")
        limit_threads()
        from distill.config.recipe import load
        from distill.dry_run import dry_run as estimate

        estimate(load(recipe, overrides))
        return 0
    return _run("distill.train", "train", recipe, overrides, config, num_processes)


@fewstep.command()
@RECIPE
@OVERRIDES
@CONFIG
@PROCESSES
def pairs(recipe: str, overrides: Sequence[str], config: str | None, num_processes: int | None) -> int:
    """Make a recipe's teacher pairs ahead of training.

    \b
    Example:
      fewstep pairs sd15_dmd --config ddp --num-processes 4
    """
    return _run("distill.pairs", "make_pairs", recipe, overrides, config, num_processes)


@fewstep.command()
@RECIPE
@click.argument("out", type=PATH)
@OVERRIDES
def encode(recipe: str, out: Path, overrides: Sequence[str]) -> None:
    """Encode the images, clips or sounds of a recipe into the folder OUT, for data.latents.

    \b
    Example:
      fewstep encode my_clips.yaml latents/ data.images=clips/
    """
    limit_threads()
    from distill.config.recipe import load
    from distill.encode import encode as run

    run(load(recipe, overrides), out)


@fewstep.command()
@RECIPE
@OVERRIDES
@click.option("--config", metavar="NAME", help="Plan for accelerate's configuration: a name (ddp, fsdp2) or a file.")
@click.option("--num-processes", type=click.IntRange(min=1), help="Plan for this many processes.")
def memory(recipe: str, overrides: Sequence[str], config: str | None, num_processes: int | None) -> None:
    """Print what each process of a recipe's run will hold in memory, before any of it is allocated.

    \b
    Examples:
      fewstep memory sdxl_dmd2_lora train.accumulation=8
      fewstep memory sd15_dmd --config fsdp2 --num-processes 4
    """
    from distill.config.recipe import load
    from distill.memory import print_memory

    print_memory(load(recipe, overrides), None if config is None else accelerate_file(config), num_processes)


@fewstep.command()
@click.argument("runs", type=PATH, nargs=-1, required=True)
def status(runs: tuple[Path, ...]) -> None:
    """Print how far each of RUNS is and how long it still takes, from its status.json.

    \b
    Example:
      fewstep status runs/*
    """
    from distill.status import print_status

    print_status(runs)


@fewstep.command()
@click.argument("run", type=PATH)
@click.argument("out", type=PATH, required=False)
@click.option(
    "--format",
    "form",
    type=click.Choice(["diffusers", "single-file", "lora", "onnx"]),
    default="diffusers",
    show_default=True,
    help="The form of OUT. single-file: one .safetensors in the original layout and a workflow, for ComfyUI and A1111 "
    "(Stable Diffusion 1.x, 2.x, XL, 3, Flux). lora: kohya's keys, of a student with memory.tier=lora. onnx: a folder "
    "(Stable Diffusion 1.x, 2.x, XL).",
)
@click.option("--variant", type=click.Choice(["fp16"]), help="Write OUT in half precision.")
@click.option("--max-shard-size", metavar="SIZE", help="Largest size of a file of OUT, such as 2GB (diffusers only).")
@click.option("--push-to-hub", metavar="OWNER/NAME", help="Upload the pipeline as this model.")
@click.option("--private", is_flag=True, help="Create the model as a private one.")
@click.option("--report", type=PATH, help="The folder of the report. Default: the newest near the run.")
def export(**options: Any) -> None:
    """Export the student of RUN as a diffusers pipeline, with its evaluation in the model card.

    RUN is the folder of a run, finished or stopped, or of an exported pipeline. With OUT the pipeline is also written
    there, in another form.

    \b
    Examples:
      fewstep export runs/pocket-dmd
      fewstep export runs/pocket-dmd half/ --variant fp16 --max-shard-size 2GB
      fewstep export runs/pocket-dmd student.safetensors --format single-file
      fewstep export runs/pocket-dmd-lora student_lora.safetensors --format lora
      fewstep export runs/pocket-dmd onnx/ --format onnx
      fewstep export runs/pocket-dmd --push-to-hub owner/model --private
    """
    limit_threads()
    from distill.export import export_and_push

    export_and_push(**options)


@fewstep.command()
@click.argument("path")
@click.option("--family", metavar="NAME", help="The teacher's family. Default: detected from the pipeline.")
@click.option(
    "--sigma-data", type=float, help="Standard deviation of the teacher's latents. Default: the family's, usually 1."
)
@click.option(
    "--size",
    "sizes",
    metavar="KEY=NUMBER",
    multiple=True,
    help="Size of a clip or sound, such as frames=9; repeatable. Default: that of the pipeline's call.",
)
def check(path: str, family: str | None, sigma_data: float | None, sizes: tuple[str, ...]) -> int:
    """Check a teacher or an exported student against stock diffusers; print check, largest difference, tolerance, ok.

    PATH is a teacher (pipeline folder, Hub id, .safetensors file, or "pocket"), a run or an exported pipeline. The exit
    code is 0 if every check passed, else 1.

    \b
    Examples:
      fewstep check pocket
      fewstep check path/to/my-teacher --family my_family
      fewstep check runs/pocket-dmd
    """
    limit_threads()
    from distill.check import check as run
    from distill.checks.sizes import parse_sizes

    return run(path, family, sigma_data, parse_sizes(sizes))


@fewstep.command()
@click.argument("run", type=PATH)
@click.option("--prompt", "prompts", multiple=True, help="A prompt; may be given several times.")
@click.option("--image", type=PATH, help="The source image, for students of editing and inpainting teachers.")
@click.option("--mask", type=PATH, help="Its mask, for students of inpainting teachers: white areas are repainted.")
@click.option("--count", type=int, default=1, show_default=True, help="Samples per prompt.")
@click.option("--num-steps", type=int, help="Network evaluations. Default: the fewest that the student was made for.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the noise.")
@click.option(
    "--out", type=PATH, help="The file to write. Default: sample.png, sample.webp (clips) or sample.wav (sounds)."
)
@ALLOW_PICKLE
def sample(**options: Any) -> None:
    """Generate images, clips or sounds with the student of RUN.

    \b
    Example:
      fewstep sample runs/pocket-scm --prompt "a photo of an ankle boot" --num-steps 2 --out boot.png
    """
    limit_threads()
    from distill.sample import sample_to_file

    sample_to_file(**options)


@fewstep.command()
@click.option(
    "--medium",
    type=click.Choice(["image", "video", "audio"]),
    default="image",
    show_default=True,
    help="What the embedded teacher samples.",
)
@click.option("--output", type=PATH, help="Folder of both runs. Default: runs/quickstart, or runs/quickstart-MEDIUM.")
@click.option("--samples", type=int, help="Samples per row of the report. Default: 1000 images, 500 clips or sounds.")
@OVERRIDES
def quickstart(medium: str, output: Path | None, samples: int | None, overrides: Sequence[str]) -> None:
    """Distil an embedded teacher with DMD and with sCM and compare the students: about six minutes on two CPU cores.

    KEY=VALUE overrides a key of both recipes. Run the same command again to continue after an interruption.

    \b
    Examples:
      fewstep quickstart
      fewstep quickstart --medium video
      fewstep quickstart --samples 200 train.steps=100
    """
    limit_threads()
    from distill.quickstart import quickstart as run

    run(output, samples, list(overrides), medium)


for command in (describe, families, demo, recipes):
    fewstep.add_command(command)
fewstep.add_command(evaluate, "eval")
add_debug_option(fewstep)


def _run(
    module: str, function: str, recipe: str, overrides: Sequence[str], config: str | None, processes: int | None
) -> int:
    """Run a function of `module` with the checked recipe, here or in the processes of accelerate's launcher."""
    if config is None and processes is None:
        limit_threads()
    from distill.config.recipe import load

    checked = load(recipe, overrides)
    if config is None and processes is None:
        getattr(import_module(module), function)(checked)
        return 0
    from distill.training.launch import launch
    from distill.training.setup import plan_data
    from distill.training.trackers import check_tracker

    if module == "distill.train":
        check_tracker(checked.train.tracker)
    plan_data(checked)  # errors are found before any process starts
    arguments = [str(recipe_file(recipe).absolute()), *overrides]  # absolute: its name may start with a dash
    return launch(module, arguments, None if config is None else accelerate_file(config), processes)


def main(*first: str) -> None:
    """The console script; `first` are words before the process's own, as when a command runs as `python -m`."""
    name = f"python -m distill.{first[0]}" if first else "fewstep"
    command: Any = fewstep.commands[first[0]] if first else fewstep
    sys.exit(run_click(command, sys.argv[1:], name))
