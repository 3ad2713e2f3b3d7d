"""Only the metrics: two folders of images against each other, or a folder's statistics kept as a reference.

    python -m eval images FOLDER_A FOLDER_B [--features clean] [--json figures.json]
    python -m eval stats FOLDER -o ref.npz [--features clean]

FOLDER_B may be whatever `--reference` of a comparison may be: an .npz, or a named statistic of clean-fid.
"""

from json import dumps
from pathlib import Path
from typing import Any

from torch import Tensor

from eval.config.names import INCEPTION_MODES
from eval.features.extractors import Extractor, extractor
from eval.features.image_folder import features_of_folder, image_warnings
from eval.metrics.fid import FrechetTo, statistics
from eval.metrics.intervals import interval, standard_error
from eval.metrics.kid import kid
from eval.metrics.prdc import LEAST, prdc
from eval.metrics.reference import Reference, save
from eval.metrics.reference import reference as read_reference
from eval.pipelines.machine import choose_device


def compare_folders(
    folder: Path,
    reference: str,
    json: Path | None = None,
    seed: int = 0,
    size: int | None = None,
    features: str = "clean",
    inception_weights: Path | None = None,
    batch_size: int = 32,
    device: str | None = None,
) -> dict[str, Any]:
    """Print, and return, every metric of the images in `folder` against a reference.

    Args:
        folder: The images to judge.
        reference: A folder, an .npz of statistics, or clean-fid:NAME/RES/SPLIT.
        json: A file to write the figures to.
        seed: Seed of KID's random subsets.
        size: Pixels a side that images are resized to first; None: as they are.
        features: The name of a feature extractor (`eval.config.names.FEATURES`).
        inception_weights: A file of Inception weights.
        batch_size: Images read at once.
        device: A torch device; None: a GPU if there is one.

    Raises:
        ValueError: One sentence for whatever the user can fix.
    """
    chosen, found = _extract(folder, size, features, inception_weights, batch_size, device)
    target = read_reference(reference, chosen, size)
    figures = compare(Reference(*statistics(found), found), target, chosen, seed)
    folders = [place for place in (folder, Path(reference)) if place.is_dir()]
    figures["warnings"] += [warning for place in dict.fromkeys(folders) for warning in image_warnings(place, size)]
    print(text(figures))
    if json:
        json.write_text(dumps(figures, indent=2, allow_nan=False) + "\n")
    return figures


def save_statistics(
    folder: Path,
    out: Path,
    size: int | None = None,
    features: str = "clean",
    inception_weights: Path | None = None,
    batch_size: int = 32,
    device: str | None = None,
) -> None:
    """Save mean, covariance and features of the images in `folder` as the .npz `out`; arguments as `compare_folders`."""
    chosen, found = _extract(folder, size, features, inception_weights, batch_size, device)
    save(out, Reference(*statistics(found), found), chosen, size)
    print(f"mu, sigma and features ({chosen.name}) of {len(found):,} images are in {out}")
    for warning in image_warnings(folder, size) + too_few_samples(len(found), found.shape[1], "images"):
        print(f"warning: {warning}")


def _extract(
    folder: Path, size: int | None, features: str, weights: Path | None, batch_size: int, device: str | None
) -> tuple[Extractor, Tensor]:
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    if size is not None and size < 1:
        raise ValueError(f"--size must be at least 1, got {size}")
    chosen = extractor(features, choose_device(device), weights)
    return chosen, features_of_folder(folder, chosen, batch_size, size)


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
        "warnings": too_few_samples(count, dimensions, "samples"),
    }
    if count > dimensions:
        error = standard_error(measure.influence(samples.features, samples.mean, samples.covariance))
        figures["frechet_interval"] = interval(distance, error)
    if target.features is not None:
        figures["warnings"] += too_few_samples(len(target.features), dimensions, "reference images")
        if chosen.name in INCEPTION_MODES:
            figures["kid"], figures["kid_standard_error"] = kid(samples.features, target.features, seed)
        if min(count, len(target.features)) >= LEAST:
            figures |= prdc(target.features, samples.features).figures()
    return figures


def too_few_samples(count: int, dimensions: int, what: str) -> list[str]:
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
