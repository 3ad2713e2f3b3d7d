"""Reading and writing references: the images or statistics that samples are compared with."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from cleanfid.features import get_reference_statistics

from eval.config.names import INCEPTION_MODES
from eval.features.extractors import Extractor
from eval.features.image_folder import features_of_folder
from eval.metrics.context import Reference
from eval.metrics.fid import statistics
from teachers import pocket
from teachers.support.errors import reads
from teachers.support.files import atomic_write
from teachers.support.text import printable

CLEAN_FID = "clean-fid:"

__all__ = ["CLEAN_FID", "Reference", "check_dimensions", "reference", "save"]


@reads
def reference(source: str, extractor: Extractor, size: int | None = None) -> Reference:
    """Read a reference.

    Args:
        source: "pocket", a folder of images, an .npz with mu and sigma (and optionally features), or one of clean-fid's
            statistics as "clean-fid:NAME/RESOLUTION/SPLIT", such as "clean-fid:cifar10/32/train". The .npz files of
            EDM, ADM, clean-fid and `python -m eval stats` have this format.
        extractor: The feature extractor.
        size: Pixels per side that a folder's images are resized to (`eval.features.resize`), or None.

    Raises:
        ValueError: The source is missing or damaged, or was made with other features or at another size.
    """
    if source == "pocket":
        if extractor.name != "pocket":
            raise ValueError(
                f'the reference "pocket" contains features of the pocket classifier, not "{extractor.name}"; '
                "choose --features pocket or another --reference"
            )
        if not (pocket.FOLDER / "reference.safetensors").is_file():
            raise ValueError(
                f'there is no reference in {pocket.FOLDER}; create it with "python -m benchmarks.pocket.make"'
            )
        return Reference(*pocket.reference(), pocket.reference_features())
    if source.startswith(CLEAN_FID):
        return _from_clean_fid(source.removeprefix(CLEAN_FID), extractor)
    path = Path(source)
    if path.is_dir():
        features = features_of_folder(path, extractor, size=size)
        return Reference(*statistics(features), features)
    if not path.is_file():
        raise ValueError(
            f'there is no reference "{source}"; --reference must be an .npz with mu and sigma, a folder of images, '
            f"or {CLEAN_FID}NAME/RES/SPLIT"
        )
    return _from_npz(path, extractor, size)


def save(path: Path, found: Reference, extractor: Extractor, size: int | None = None) -> None:
    """Write a reference as an .npz that `reference` and other programs that use mu and sigma can read.

    The file is written under a temporary name first, so an interruption leaves no incomplete file.

    Args:
        path: The file.
        found: The reference.
        extractor: The feature extractor that it was made with.
        size: Pixels per side that its images were resized to, or None.

    Raises:
        ValueError: The file cannot be written.
    """
    arrays: dict[str, Any] = {
        "mu": found.mean.numpy(),
        "sigma": found.covariance.numpy(),
        "extractor": np.array(extractor.name),
        "size": np.array(size or 0),
    }
    if found.features is not None:
        arrays["features"] = found.features.numpy()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, concurrent=True) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); choose another file with -o") from error


def _from_npz(path: Path, extractor: Extractor, size: int | None) -> Reference:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mean, covariance = (torch.from_numpy(np.asarray(arrays[key], dtype=np.float64)) for key in ("mu", "sigma"))
            features = torch.from_numpy(arrays["features"]) if "features" in arrays else None
            made_with = str(arrays["extractor"]) if "extractor" in arrays else extractor.name
            made_at = int(arrays["size"]) if "size" in arrays else 0  # 0: images were not resized
    except Exception as error:  # zipfile, zlib and NumPy raise many types for damaged files
        reason = printable(error) or type(error).__name__
        raise ValueError(f"{path} must be an .npz with the arrays mu and sigma ({reason})") from error
    if made_with != extractor.name:
        raise ValueError(
            f'{path} was made with the features "{made_with}", not "{extractor.name}"; choose --features {made_with}'
        )
    if made_at not in (0, size):
        raise ValueError(f"{path} was made from images of {made_at} x {made_at} pixels; choose --size {made_at}")
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"mu and sigma in {path} must have the shapes (D,) and (D, D), got {tuple(mean.shape)} and "
            f"{tuple(covariance.shape)}"
        )
    if features is not None and (features.ndim != 2 or features.shape[1] != len(mean)):
        raise ValueError(f"features in {path} must have the shape (N, {len(mean)}) of mu, got {tuple(features.shape)}")
    for name, array in (("mu", mean), ("sigma", covariance), ("features", features)):
        if array is not None and not bool(array.isfinite().all()):
            raise ValueError(f"{name} in {path} must be finite, got NaN or infinite values")
    if not torch.allclose(covariance, covariance.T, rtol=1e-3, atol=1e-5 * float(covariance.abs().max())):
        raise ValueError(f"sigma in {path} must be symmetric, as a covariance is")
    return Reference(mean, covariance, features)


def _from_clean_fid(name: str, extractor: Extractor) -> Reference:
    """One of clean-fid's statistics, from its cache or its server; NAME/na/custom was made on this machine."""
    parts = name.split("/")
    if len(parts) != 3:
        raise ValueError(
            f'--reference "{CLEAN_FID}{name}" must be {CLEAN_FID}NAME/RESOLUTION/SPLIT, such as '
            f"{CLEAN_FID}cifar10/32/train"
        )
    if extractor.name not in INCEPTION_MODES:
        raise ValueError(
            f'clean-fid\'s statistics are of Inception features, not "{extractor.name}"; choose --features clean'
        )
    dataset, resolution, split = parts
    found = {}
    for metric in ("FID", "KID"):
        try:
            found[metric] = get_reference_statistics(
                dataset, resolution, mode=extractor.name, split=split, metric=metric
            )
        except (OSError, ValueError, KeyError) as error:
            if metric == "FID":
                raise ValueError(
                    f"clean-fid's statistics {name} in mode {extractor.name} do not exist or cannot be downloaded "
                    f"({error}); use a folder of images or an .npz instead"
                ) from error
    mean, covariance = (torch.from_numpy(np.asarray(part, dtype=np.float64)) for part in found["FID"])
    return Reference(mean, covariance, torch.from_numpy(found["KID"]) if "KID" in found else None)


def check_dimensions(source: str, found: Reference, extractor: Extractor, dimensions: int) -> None:
    """Raise ValueError if a reference's features are not those of `extractor`, which have `dimensions`."""
    if len(found.mean) != dimensions:
        raise ValueError(
            f'the reference "{source}" has {len(found.mean)} dimensions and the features "{extractor.name}" have '
            f"{dimensions}; choose the features that it was made with"
        )
