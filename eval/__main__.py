"""The evaluation commands: `fewstep eval`, also as `python -m eval`.

Arguments are parsed before torch is imported, so that help and usage errors are immediate.
"""

import sys
from pathlib import Path
from typing import Any

import click

from eval.config.names import CLIP, FEATURES, SCORERS
from eval.config.protocol import read_protocol
from teachers.support.errors import run_click
from teachers.support.text import printable
from teachers.support.threads import limit_threads

PATH = click.Path(path_type=Path)
DEVICE = click.option("--device", help='Such as "cpu" or "cuda:0". Default: a GPU if there is one.')
WEIGHTS = click.option("--inception-weights", type=PATH, metavar="FILE", help="Inception weights to use.")
ALLOW_PICKLE = click.option(
    "--allow-pickle",
    is_flag=True,
    help="Read pickled weights where there are no safetensors files. Only tensors are unpickled.",
)
SIZE = click.option("--size", type=int, help="Resize images to this many pixels per side before they are scored.")


class DefaultGroup(click.Group):
    """A group whose first word may be left out: then it is `compare`."""

    default = "compare"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


@click.group(cls=DefaultGroup, context_settings={"help_option_names": ["-h", "--help"]})
def evaluate() -> None:
    """Evaluate students, teachers and other pipelines in one report."""


@evaluate.command(short_help="Compare pipelines and write a report (the default).")
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN...")
@click.option("--out", type=PATH, default=Path("runs/report"), show_default=True, help="The report's folder.")
@click.option("--samples", type=int, default=1000, show_default=True, help="Images per row.")
@click.option("--batch-size", type=int, default=32, show_default=True, help="Images generated at once.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the noise, the same for all rows.")
@DEVICE
@click.option("--precision", help="float32, float16 or bfloat16. Default: float16 on a GPU, float32 on a CPU.")
@click.option("--features", help=f"What images are compared by: {', '.join(FEATURES)}.")
@WEIGHTS
@click.option("--baseline", type=PATH, metavar="RUN", help="The run that ratios refer to. Default: the teacher.")
@click.option("--compile", "compiled", is_flag=True, help="Also measure latency under torch.compile.")
@click.option("--reference", help='Real images: "pocket", an .npz, a folder, clean-fid:NAME/RES/SPLIT, or "teacher".')
@click.option(
    "--prompts",
    help='"pocket", a file of prompts (.txt, .csv, .jsonl), "none", or a folder of source images with instructions.',
)
@SIZE
@click.option("--clip", is_flag=False, flag_value=CLIP, metavar="[MODEL]", help=f"Add the CLIP score. Default: {CLIP}.")
@click.option("--clap", metavar="MODEL", help="Add the CLAP score of sounds: a folder or a Hub id of a CLAP model.")
@click.option("--score", multiple=True, metavar="NAME[=FOLDER]", help=f"Add a score: {', '.join(SCORERS)}. Repeatable.")
@ALLOW_PICKLE
@click.option("--protocol", type=PATH, metavar="FILE", help="A YAML file with values for these options.")
@click.option("--steps", metavar="N[,N]", help="Pipelines without distill.json: numbers of steps, one row for each.")
@click.option("--guidance", type=float, help="Pipelines without distill.json: the guidance_scale of their calls.")
@click.pass_context
def compare(ctx: click.Context, **options: Any) -> None:
    """Compare distilled students with their teacher, or any pipelines, and write one report.

    Each RUN is a finished run's folder, the folder of a diffusers pipeline, a Hub id or an embedded teacher
    ("pocket"). What is measured comes from the runs' distill.json; the options replace it. Run the same command again
    to continue after an interruption.

    Three more commands: `images` and `stats` measure folders of images, clips or sounds; `vbench` writes clips for
    VBench (see `images --help`).

    \b
    Examples:
      fewstep eval runs/pocket-dmd runs/pocket-scm --out runs/report
      fewstep eval owner/model --steps 4 --guidance 1.0 --prompts prompts.txt --reference photos/
      fewstep eval images generated/ photos/
      fewstep eval stats photos/ -o photos.npz
    """
    if options["protocol"] is not None:
        given = click.core.ParameterSource.COMMANDLINE
        fixed = read_protocol(options["protocol"])
        options |= {name: value for name, value in fixed.items() if ctx.get_parameter_source(name) is not given}
    limit_threads()
    from eval.compare import compare as run
    from eval.report import plain
    from eval.report.verdict import verdict_text

    report = run(**options)
    print(plain(report))
    print(f"\n{printable(verdict_text(report))}")
    print(
        f"\nThe report is in {options['out'] / 'report.html'} (also report.md, report.json, report.csv, grid.png, "
        f"report.tex, figures/ and the samples in {report['gallery']['folder']}/)"
    )


@evaluate.command(short_help="Compare two folders of images, clips or sounds.")
@click.argument("folder", type=PATH)
@click.argument("reference")
@click.option("--json", type=PATH, help="Also write the figures to this file.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of KID's random subsets.")
@SIZE
@click.option("--features", default="clean", show_default=True, help=f"One of {', '.join(FEATURES)}.")
@WEIGHTS
@click.option("--batch-size", type=int, default=32, show_default=True, help="Images read at once.")
@ALLOW_PICKLE
@DEVICE
def images(**options: Any) -> None:
    """Compare the images in FOLDER with REFERENCE: a folder, an .npz, or clean-fid:NAME/RES/SPLIT.

    With features of clips or sounds (such as motion, i3d=FILE, spectrum or clap=FOLDER) the folders contain clips or
    sounds, which are read with the size and the rate of the first file in FOLDER.

    \b
    Examples:
      fewstep eval images generated/ photos/ --json figures.json
      fewstep eval images clips/ real-clips/ --features i3d=rgb_imagenet.pt
    """
    limit_threads()
    from eval.images import compare_folders

    compare_folders(**options)


@evaluate.command(short_help="Save a folder's statistics as a reference.")
@click.argument("folder", type=PATH)
@click.option("-o", "--out", type=PATH, required=True, help="The .npz to write.")
@SIZE
@click.option("--features", default="clean", show_default=True, help=f"One of {', '.join(FEATURES)}.")
@WEIGHTS
@click.option("--batch-size", type=int, default=32, show_default=True, help="Images read at once.")
@ALLOW_PICKLE
@DEVICE
def stats(**options: Any) -> None:
    """Save the statistics of the images in FOLDER, for --reference; of clips or sounds with features of these.

    \b
    Examples:
      fewstep eval stats photos/ -o photos.npz
      fewstep eval stats sounds/ -o sounds.npz --features clap=models/clap
    """
    limit_threads()
    from eval.images import save_statistics

    save_statistics(**options)


@evaluate.command(short_help="Write clips for VBench.")
@click.argument("run", type=PATH)
@click.argument("folder", type=PATH)
@click.option("--prompts", required=True, metavar="FILE", help="VBench's prompts, one per line.")
@click.option("--count", type=int, default=5, show_default=True, help="Clips of each prompt.")
@click.option("--num-steps", type=int, help="Steps of the student. Default: the fewest that it was made for.")
@click.option("--batch-size", type=int, default=1, show_default=True, help="Clips generated at once.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the noise.")
@DEVICE
@click.option("--precision", help="float32, float16 or bfloat16. Default: float16 on a GPU, float32 on a CPU.")
@ALLOW_PICKLE
def vbench(**options: Any) -> None:
    """Write clips of RUN into FOLDER, named as VBench expects: PROMPT-0.mp4, PROMPT-1.mp4 and so on.

    Run the same command again to continue after an interruption: existing clips are kept. VBench itself is not run.

    \b
    Example:
      fewstep eval vbench runs/wan21-1.3b-dmd clips/ --prompts all_dimension.txt
    """
    limit_threads()
    from eval.vbench import write_clips

    print(write_clips(**options))


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN...")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to serve at.")
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="The port to serve at.")
@click.option("--share", is_flag=True, help="Also a public address, through gradio's servers.")
@DEVICE
@click.option("--precision", help="float32, float16 or bfloat16. Default: float16 on a GPU, float32 on a CPU.")
@ALLOW_PICKLE
def demo(**options: Any) -> None:
    """Generate with teacher and students side by side, in a browser. Needs the `demo` extra.

    \b
    Example:
      fewstep demo runs/quickstart/pocket-dmd runs/quickstart/pocket-scm
    """
    limit_threads()
    from eval.demo import serve_runs

    serve_runs(**options)


if __name__ == "__main__":
    sys.exit(run_click(evaluate, name="python -m eval"))
