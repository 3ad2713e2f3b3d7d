"""The commands `fewstep describe` and `fewstep families`, also available as `python -m teachers`."""

import sys

import click

from teachers.support.errors import run_click


@click.command()
@click.argument("path")
@click.option("--lora", "loras", metavar="PATH", multiple=True, help="A fine-tune of the teacher; it must fit.")
def describe(path: str, loras: tuple[str, ...]) -> None:
    """Show a teacher's family, schedule, sizes and training cost, and check the weights of a local pipeline.

    PATH is a pipeline folder, a Hub id (owner/name), a .safetensors file, or "pocket".

    \b
    Examples:
      fewstep describe pocket
      fewstep describe stable-diffusion-v1-5/stable-diffusion-v1-5
    """
    from teachers.describe import describe as lines
    from teachers.loading.lora_files import Lora

    print(lines(path, loras=[Lora(lora) for lora in loras]))


@click.command()
@click.option("--missing", is_flag=True, help="List diffusers' pipelines that no installed family takes, by task.")
def families(missing: bool) -> None:
    """List the installed teacher families and the pipelines that they take."""
    from diffusers import __version__

    from teachers.loading.coverage import coverage
    from teachers.loading.registry import installed

    tasks = coverage()
    if missing:
        for task, pipelines in tasks.items():
            print(f"{task}:", *(f"  {name}" for name, taken in pipelines.items() if not taken), sep="\n")
        return
    for name, cls in installed().items():
        print(f"{name:<22} {', '.join(kind.__name__ for kind in cls.pipelines) or 'for use from Python'}")
    counts = ", ".join(f"{sum(taken.values())} of {len(taken)} for {task}" for task, taken in tasks.items())
    print(f"Taken of the pipelines that diffusers {__version__} chooses from automatically: {counts}")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def teachers() -> None:
    """Commands about teachers."""


teachers.add_command(describe)
teachers.add_command(families)

if __name__ == "__main__":
    sys.exit(run_click(teachers, name="python -m teachers"))
