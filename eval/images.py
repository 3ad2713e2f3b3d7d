"""Metrics of a folder of images, clips or sounds without a pipeline, and statistics of a folder saved as a reference.

    fewstep eval images FOLDER REFERENCE [--features clean] [--json figures.json]
    fewstep eval stats FOLDER -o ref.npz [--features clean]

REFERENCE is a folder, an .npz or a named statistic of clean-fid, as for `--reference` of a comparison. The features say
whether the folders contain images, clips or sounds.
"""

from json import dumps
from pathlib import Path
from typing import Any

from torch import Tensor

from eval.config.media_names import MEDIA_FEATURES
from eval.config.names import INCEPTION_MODES, PICKLES_ALLOWED
from eval.config.options import check_options
from eval.features.extractors import Extractor
from eval.features.image_folder import features_of_folder, image_warnings
from eval.features.media_extractors import extractor_for
from eval.metrics.fid import FrechetTo, statistics
from eval.metrics.intervals import interval, standard_error
from eval.metrics.kid import kid
from eval.metrics.prdc import LEAST, prdc
from eval.metrics.reference import Reference, check_dimensions, save
from eval.metrics.reference import reference as read_reference
from eval.pipelines.machine import choose_device
from teachers.media import ANY_IMAGE, Audio, Image, Medium, Video
from teachers.media.probe import clip_of, sound_of
from teachers.support.files import atomic_write
from teachers.support.listing import list_files
from teachers.support.text import printable


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
    allow_pickle: bool = False,
) -> dict[str, Any]:
    """Compute, print and return every metric of the images in `folder` against a reference.

    Args:
        folder: The images to evaluate.
        reference: A folder, an .npz of statistics, or clean-fid:NAME/RES/SPLIT.
        json: A file to write the metrics to.
        seed: Seed of KID's random subsets.
        size: Crop and resize images to this many pixels per side first; None leaves them unchanged.
        features: The name of a feature extractor, of images (`eval.config.names.FEATURES`), clips or sounds
            (`eval.config.media_names`).
        inception_weights: A file of Inception weights.
        batch_size: Images per batch.
        device: A torch device; None means a GPU if there is one.
        allow_pickle: Whether pickled weights of feature extractors are read where there are no safetensors files.

    Returns:
        The metrics by name, as `compare_features` returns them, with warnings about the images added.

    Raises:
        ValueError: If an option is invalid, or the images or the reference cannot be used.
    """
    check_options(seed=seed)
    chosen, sample_features = _extract(folder, size, features, inception_weights, batch_size, device, allow_pickle)
    target = read_reference(reference, chosen, size)
    check_dimensions(reference, target, chosen, sample_features.shape[1])
    metrics = compare_features(Reference(*statistics(sample_features), sample_features), target, chosen, seed)
    if target.note is not None:
        metrics["warnings"].append(target.note)
    if allow_pickle:
        metrics["warnings"].append(PICKLES_ALLOWED)
    folders = [path for path in (folder, Path(reference)) if path.is_dir() and chosen.medium is None]
    metrics["warnings"] += [warning for path in dict.fromkeys(folders) for warning in image_warnings(path, size)]
    print(as_text(metrics))
    if json:
        with atomic_write(json, concurrent=True) as temporary:
            temporary.write_text(dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return metrics


def save_statistics(
    folder: Path,
    out: Path,
    size: int | None = None,
    features: str = "clean",
    inception_weights: Path | None = None,
    batch_size: int = 32,
    device: str | None = None,
    allow_pickle: bool = False,
) -> None:
    """Save mean, covariance and features of the images in `folder` as an .npz file.

    Args:
        folder: The images.
        out: The file to write.
        size: Crop and resize images to this many pixels per side first; None leaves them unchanged.
        features: The name of a feature extractor, of images (`eval.config.names.FEATURES`), clips or sounds
            (`eval.config.media_names`).
        inception_weights: A file of Inception weights.
        batch_size: Images per batch.
        device: A torch device; None means a GPU if there is one.
        allow_pickle: Whether pickled weights of feature extractors are read where there are no safetensors files.

    Raises:
        ValueError: If an option is invalid, the images cannot be used, or the file cannot be written.
    """
    chosen, found = _extract(folder, size, features, inception_weights, batch_size, device, allow_pickle)
    save(out, Reference(*statistics(found), found), chosen, size)
    plural = "images" if chosen.medium is None else chosen.medium.plural
    print(f"saved mu, sigma and features ({chosen.name}) of {len(found):,} {plural} to {out}")
    warnings = image_warnings(folder, size) if chosen.medium is None else []
    for warning in warnings + too_few_samples(len(found), found.shape[1], plural, plural, _has_kid(chosen)):
        print(f"warning: {warning}")


def _extract(
    folder: Path,
    size: int | None,
    features: str,
    weights: Path | None,
    batch_size: int,
    device: str | None,
    allow_pickle: bool,
) -> tuple[Extractor, Tensor]:
    check_options(batch_size=batch_size, size=size)
    medium = medium_of_folder(folder, features)
    if size is not None and not isinstance(medium, Image):
        raise ValueError(f"--size is for images, got {size} for {medium.plural}; omit it")
    chosen = extractor_for(features, medium, choose_device(device), weights, allow_pickle)
    return chosen, features_of_folder(folder, chosen, batch_size, size)


def medium_of_folder(folder: Path, features: str) -> Medium:
    """What a folder contains: images of any size, or clips or sounds with the size of its first file.

    Args:
        folder: The folder.
        features: The name of the features, which are for one medium.

    Raises:
        ValueError: If there is no file that the medium reads, or the first one cannot be read.
    """
    known = MEDIA_FEATURES.get(features.partition("=")[0])
    if known is None:
        return ANY_IMAGE
    kind, probe = (Video, clip_of) if known.medium == "video" else (Audio, sound_of)
    files = [file for file in list_files(folder, kind.plural, kind.endings) if kind.lists(file)]
    if not files:
        raise ValueError(f"{folder} contains no {kind.plural} ({', '.join(kind.endings)})")
    found = (probe(file) for file in files)
    first = next(found)
    if isinstance(first, Video) and first.frames == 1:  # a clip that does not change says nothing about the others
        return next((medium for medium in found if isinstance(medium, Video) and medium.frames > 1), first)
    return first


def compare_features(samples: Reference, target: Reference, chosen: Extractor, seed: int = 0) -> dict[str, Any]:
    """Every metric that can be computed for two sets of features.

    Args:
        samples: Statistics and features of the images to evaluate.
        target: Statistics of the reference, and its features if known.
        chosen: The extractor of both.
        seed: Seed of KID's random subsets.

    Returns:
        Metrics by name; None for a metric that needs reference features or more samples. "warnings" is a list of
        sentences.
    """
    assert samples.features is not None
    count, dimensions = samples.features.shape
    plural = "images" if chosen.medium is None else chosen.medium.plural
    with_kid = target.features is not None and _has_kid(chosen)
    measure = FrechetTo(target.mean, target.covariance)
    distance = measure.distance(samples.mean, samples.covariance)
    metrics: dict[str, Any] = {
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
        "warnings": too_few_samples(count, dimensions, "samples", plural, with_kid),
    }
    if count > dimensions:
        error = standard_error(measure.influence(samples.features, samples.mean, samples.covariance))
        metrics["frechet_interval"] = interval(distance, error)
    if target.features is not None:
        reference_samples = f"reference {plural}"
        metrics["warnings"] += too_few_samples(len(target.features), dimensions, reference_samples, plural, with_kid)
        if with_kid:
            metrics["kid"], metrics["kid_standard_error"] = kid(samples.features, target.features, seed)
        if min(count, len(target.features)) >= LEAST:
            metrics |= prdc(target.features, samples.features).figures()
    return metrics


def _has_kid(chosen: Extractor) -> bool:
    return chosen.name in INCEPTION_MODES


def too_few_samples(
    count: int, dimensions: int, what: str, plural: str = "images", with_kid: bool = False
) -> list[str]:
    """A warning if a sample covariance is singular, which makes Frechet distances too large; else an empty list.

    Args:
        count: The number of samples.
        dimensions: The number of features of a sample.
        what: The samples in the warning.
        plural: "images", "clips" or "sounds".
        with_kid: Whether KID is measured too, which does not have this bias.
    """
    if count > dimensions:
        return []
    return [
        f"{count} {what} are too few for {dimensions} feature dimensions: the Frechet distance is too large and "
        f"comparable only with distances from the same numbers of {plural}"
        f"{' (KID does not have this bias)' * with_kid}"
    ]


def as_text(metrics: dict[str, Any]) -> str:
    """The metrics as lines for the terminal."""
    frechet_interval = metrics["frechet_interval"]
    suffix, width = f"@{metrics['samples']}", max(28, len(metrics["name"]))
    lines = [
        f"{metrics['name']:<{width}} {metrics['frechet_distance']:.4f}"
        + (
            f"  (95% interval over random samples: {frechet_interval[0]:.4f} to {frechet_interval[1]:.4f})"
            if frechet_interval
            else ""
        )
    ]
    if metrics["kid"] is not None:
        lines.append(f"{'KID-' + metrics['features'] + suffix:<{width}} {metrics['kid']:.6f}")
    for key in ("precision", "recall", "density", "coverage"):
        if metrics[key] is not None:
            lines.append(f"{key.capitalize() + suffix:<{width}} {metrics[key]:.4f}")
    count = metrics["reference_images"]
    lines.append(f"{'reference images':<{width}} {'statistics only' if count is None else count}")
    return "\n".join([*lines, *(f"warning: {printable(warning)}" for warning in metrics["warnings"])])
