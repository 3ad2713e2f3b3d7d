"""Compare distilled students with their teacher and write one report.

    python -m eval runs/pocket-dmd runs/pocket-scm --out runs/report
    python -m eval FOLDER_OR_HUB_ID --steps 4 --guidance 1.0 --prompts FILE --reference REAL
    python -m eval images FOLDER_A FOLDER_B        only the metrics, of two folders of images
    python -m eval stats FOLDER -o ref.npz         keep a folder's statistics as a reference

Each RUN is a folder with pipeline/ inside, any diffusers pipeline's folder, or the hub id of one. What is measured, and
against what, comes from the runs' distill.json; the options below stand in for it, and a protocol (a YAML file such as
recipes/eval/coco30k.yaml) for the options. Run the same command again to go on where a killed one stopped.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from eval.config.protocol import CLIP, read_protocol
from eval.errors import told


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="python -m eval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a finished run, or a pipeline")
    out.add_argument(
        "--out", type=Path, default=Path("runs/report"), help="where the report goes (default: runs/report)"
    )
    out.add_argument("--samples", type=int, default=1000, help="images a row for the Frechet distance (default: 1000)")
    out.add_argument("--batch-size", type=int, default=32, help="images drawn at once (default: 32)")
    out.add_argument("--seed", type=int, default=0, help="seed of the noise, the same for all rows (default: 0)")
    out.add_argument("--device", help='such as "cpu" or "cuda:0" (default: a GPU where there is one)')
    out.add_argument("--precision", help="float32, float16 or bfloat16 (default: float16 on a GPU, float32 on a CPU)")
    out.add_argument(
        "--features", help="what images are compared by: pocket, clean (FID), ... (see eval/features/extractors.py)"
    )
    out.add_argument("--inception-weights", type=Path, metavar="FILE", help="Inception weights to use")
    out.add_argument("--baseline", type=Path, metavar="RUN", help="the run that ratios are over (default: the teacher)")
    out.add_argument("--compile", action="store_true", dest="compiled", help="add latencies under torch.compile")
    out.add_argument("--reference", help='"pocket", an .npz with mu and sigma, a folder of images, or "teacher"')
    out.add_argument("--prompts", help='"pocket", a file of prompts (.txt, .csv, .jsonl), or "none"')
    out.add_argument("--size", type=int, help="pixels a side that images are brought to before they are judged")
    out.add_argument(
        "--clip",
        nargs="?",
        const=CLIP,
        metavar="MODEL",
        help=f"add the CLIP score, by a transformers CLIP's folder or hub id (default: {CLIP})",
    )
    out.add_argument("--protocol", type=Path, metavar="FILE", help="a YAML file with these options' values")
    plain = out.add_argument_group("pipelines without a distill.json")
    plain.add_argument("--steps", metavar="N[,N]", help="steps of their calls, a row each (default: their class's)")
    plain.add_argument("--guidance", type=float, help="guidance_scale of their calls (default: their class's)")
    return out


def folder_parser(name: str) -> argparse.ArgumentParser:
    """The command line of "images" or of "stats"."""
    about = {"images": "Compare two folders of images.", "stats": "Keep the statistics of a folder of images."}
    out = argparse.ArgumentParser(prog=f"python -m eval {name}", description=about[name])
    out.add_argument("folder", type=Path, help="the images to judge" if name == "images" else "the reference's images")
    if name == "images":
        out.add_argument("reference", help="what they should be like: a folder, an .npz, clean-fid:NAME/RES/SPLIT")
        out.add_argument("--json", type=Path, help="write the figures to this file too")
        out.add_argument("--seed", type=int, default=0, help="seed of KID's random subsets (default: 0)")
    else:
        out.add_argument("-o", "--out", type=Path, required=True, help="the .npz to write")
    out.add_argument("--size", type=int, help="pixels a side that images are brought to first")
    out.add_argument("--features", default="clean", help="clean (default), legacy_tensorflow, legacy_pytorch, ...")
    out.add_argument("--inception-weights", type=Path, metavar="FILE", help="Inception weights to use")
    out.add_argument("--batch-size", type=int, default=32)
    out.add_argument("--device", help='such as "cpu" or "cuda:0" (default: a GPU where there is one)')
    return out


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code, 2 where the user has something to mend."""
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] in ("images", "stats"):
        chosen = folder_parser(words[0]).parse_args(words[1:])
        from eval.images import command

        return told(lambda: command(words[0], chosen))
    args = parser().parse_args(words)

    def comparison() -> None:
        # Only now that the arguments are known to be right: torch takes seconds to load, and --help should not.
        from eval.compare import compare
        from eval.report import plain

        if args.protocol is not None:
            args.__dict__ |= given(words, read_protocol(args.protocol))
        print(plain(compare(**vars(args))))
        print(f"\nThe report is in {args.out / 'report.html'} (also report.md, report.json, grid.png)")

    return told(comparison)


def given(words: list[str], protocol: dict[str, Any]) -> dict[str, Any]:
    """The options of a protocol and the words of the command line together, which win."""
    both = parser()
    both.set_defaults(**protocol)
    return vars(both.parse_args(words))


if __name__ == "__main__":
    sys.exit(main())
