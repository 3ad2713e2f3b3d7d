"""Only the metrics: two folders of images against each other, or a folder's statistics kept as a reference.

    python -m eval images FOLDER_A FOLDER_B [--features clean] [--json figures.json]
    python -m eval stats FOLDER -o ref.npz [--features clean]

FOLDER_B may be whatever `--reference` of a comparison may be: an .npz, or a named statistic of clean-fid.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from eval.features.extractors import Extractor, extractor
from eval.features.image_folder import features_of_folder, oddities
from eval.features.inception import MODES
from eval.metrics.fid import FrechetTo, statistics
from eval.metrics.intervals import interval, standard_error
from eval.metrics.kid import kid
from eval.metrics.prdc import LEAST, prdc
from eval.metrics.reference import Reference, reference, save
from eval.pipelines.machine import choose_device


def command(name: str, args: argparse.Namespace) -> None:
    """Run "images" or "stats". Raises ValueError, one sentence, for whatever a user can mend."""
    if args.batch_size < 1:
        raise ValueError(f"a batch holds at least one image, not {args.batch_size}; mend --batch-size")
    chosen = extractor(args.features, choose_device(args.device), args.inception_weights)
    if args.size is not None and args.size < 1:
        raise ValueError(f"images have at least one pixel a side, not {args.size}; mend --size")
    features = features_of_folder(args.folder, chosen, args.batch_size, args.size)
    if name == "stats":
        save(args.out, Reference(*statistics(features), features), chosen, args.size)
        print(f"mu, sigma and features ({chosen.name}) of {len(features):,} images are in {args.out}")
        for warning in oddities(args.folder, args.size) + shortage(len(features), features.shape[1], "images"):
            print(f"warning: {warning}")
        return
    target = reference(args.reference, chosen, args.size)
    figures = compare(Reference(*statistics(features), features), target, chosen, args.seed)
    folders = [folder for folder in (args.folder, Path(args.reference)) if folder.is_dir()]
    figures["warnings"] += [warning for folder in dict.fromkeys(folders) for warning in oddities(folder, args.size)]
    print(text(figures))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")


def compare(samples: Reference, target: Reference, chosen: Extractor, seed: int = 0) -> dict[str, Any]:
    """Every figure that the two sets allow, by name; None where the reference keeps no features."""
    assert samples.features is not None
    count, dimensions = samples.features.shape
    measure = FrechetTo(target.mean, target.covariance)
    distance = measure.distance(samples.mean, samples.covariance)
    figures: dict[str, Any] = {
        "name": chosen.figure(count, dimensions),
        "features": chosen.name,
        "samples": count,
        "reference_images": None if target.features is None else len(target.features),
        "seed": seed,
        "frechet_distance": distance,
        "frechet_interval": None,
        "kid": None,
        "kid_standard_error": None,
        **dict.fromkeys(("precision", "recall", "density", "coverage")),
        "warnings": shortage(count, dimensions, "samples"),
    }
    if count > dimensions:
        error = standard_error(measure.influence(samples.features, samples.mean, samples.covariance))
        figures["frechet_interval"] = interval(distance, error)
    if target.features is not None:
        figures["warnings"] += shortage(len(target.features), dimensions, "reference images")
        if chosen.name in MODES:
            figures["kid"], figures["kid_standard_error"] = kid(samples.features, target.features, seed)
        if min(count, len(target.features)) >= LEAST:
            figures |= prdc(target.features, samples.features).figures()
    return figures


def shortage(count: int, dimensions: int, what: str) -> list[str]:
    """A warning where a covariance lacks rank, which makes Frechet distances too large."""
    if count > dimensions:
        return []
    return [
        f"{count} {what} cannot fill {dimensions} dimensions: the Frechet distance is too large, and comparable only "
        "with others of exactly these counts (KID has no such bias)."
    ]


def text(figures: dict[str, Any]) -> str:
    """The figures, one a line, as the terminal shows them."""
    low_high = figures["frechet_interval"]
    many, width = f"@{figures['samples']}", max(28, len(figures["name"]))
    lines = [
        f"{figures['name']:<{width}} {figures['frechet_distance']:.4f}"
        + (f"  (95%: {low_high[0]:.4f} to {low_high[1]:.4f}, from the samples' draw)" if low_high else "")
    ]
    if figures["kid"] is not None:
        lines.append(f"{'KID-' + figures['features'] + many:<{width}} {figures['kid']:.6f}")
    for key in ("precision", "recall", "density", "coverage"):
        if figures[key] is not None:
            lines.append(f"{key.capitalize() + many:<{width}} {figures[key]:.4f}")
    known = figures["reference_images"]
    lines.append(f"{'reference images':<{width}} {'statistics only' if known is None else known}")
    return "\n".join([*lines, *(f"warning: {warning}" for warning in figures["warnings"])])
