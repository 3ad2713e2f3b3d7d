"""Reading and writing references: the images or statistics that samples are compared with."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cleanfid.features import get_reference_statistics
from torch import Tensor

from eval.config.names import INCEPTION_MODES
from eval.features.extractors import Extractor
from eval.features.image_folder import features_of_folder
from eval.metrics.context import Reference
from eval.metrics.fid import check_statistics, statistics
from teachers.loading.embedded import EMBEDDED
from teachers.support.arrays import check_npz
from teachers.support.checksums import SHA256, Damaged, digest
from teachers.support.errors import reads
from teachers.support.files import atomic_write
from teachers.support.regular import check_regular
from teachers.support.text import one_line

CLEAN_FID = "clean-fid:"
ARRAYS = ("mu", "sigma", "features", "extractor", "size", SHA256)  # that `save` writes
MOST_APART = 100.0  # times the expected squared distance of the mean of a random part of the samples

__all__ = ["CLEAN_FID", "Reference", "check_dimensions", "reference", "save"]


@reads
def reference(source: str, extractor: Extractor, size: int | None = None) -> Reference:
    """Read a reference.

    Args:
        source: An embedded teacher such as "pocket", a folder of images, clips or sounds, an .npz with mu and sigma
            (and optionally features), or one of clean-fid's statistics as "clean-fid:NAME/RESOLUTION/SPLIT", such as
            "clean-fid:cifar10/32/train". The .npz files of EDM, ADM, clean-fid and `python -m eval stats` have this
            format.
        extractor: The feature extractor.
        size: Pixels per side that a folder's images are resized to (`eval.features.resize`), or None.

    Raises:
        ValueError: If the source is missing or damaged, or was made with other features or at another size.
    """
    if source in EMBEDDED:
        if extractor.name != source:
            raise ValueError(
                f'the reference "{source}" contains features of {EMBEDDED[source].title}\'s judge, not '
                f'"{extractor.name}"; choose --features {source} or another --reference'
            )
        return Reference(*EMBEDDED[source].reference())
    if source.startswith(CLEAN_FID):
        return _from_clean_fid(source.removeprefix(CLEAN_FID), extractor)
    path = Path(source)
    if path.is_dir():
        features = features_of_folder(path, extractor, size=size)
        if not bool(features.isfinite().all()):
            kind = "images" if extractor.medium is None else extractor.medium.plural
            raise ValueError(f"the {kind} in {path} must have finite features, got NaN or infinite values")
        return Reference(*statistics(features), features)
    if not path.exists():
        raise ValueError(
            f'there is no reference "{source}"; --reference must be an .npz with mu and sigma, a folder of images, '
            f"or {CLEAN_FID}NAME/RES/SPLIT"
        )
    check_regular(path)
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
        ValueError: If the file cannot be written.
    """
    arrays: dict[str, Any] = {
        "mu": found.mean.numpy(),
        "sigma": found.covariance.numpy(),
        "extractor": np.array(extractor.name),
        "size": np.array(size or 0),
    }
    if found.features is not None:
        arrays["features"] = found.features.numpy()
    arrays[SHA256] = np.array(digest(arrays))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, concurrent=True) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); choose another file with -o") from error


def _from_npz(path: Path, extractor: Extractor, size: int | None) -> Reference:
    try:
        check_npz(path, ARRAYS)
        with np.load(path, allow_pickle=False) as arrays:
            _verify(arrays)
            mean, covariance = (_double(arrays[key], key) for key in ("mu", "sigma"))
            features = _features(arrays["features"]) if "features" in arrays else None
            note = None if "extractor" in arrays else _unknown(path, extractor)
            made_with = str(arrays["extractor"]) if "extractor" in arrays else extractor.name
            made_at = int(arrays["size"]) if "size" in arrays else 0  # 0: images were not resized
    except Exception as error:  # zipfile, zlib and NumPy raise many types for damaged files
        reason = one_line(str(error)) or type(error).__name__
        raise ValueError(f"{path} must be an .npz with the arrays mu and sigma ({reason})") from error
    if made_with != extractor.name:
        raise ValueError(
            f'{path} was made with the features "{made_with}", not "{extractor.name}"; choose --features {made_with}'
        )
    if made_at not in (0, size):
        raise ValueError(f"{path} was made from images of {made_at} x {made_at} pixels; choose --size {made_at}")
    found = replace(_checked(str(path), mean, covariance, features), note=note)
    if features is not None:
        _check_same_samples(str(path), features, mean, covariance)
    return found


def _unknown(path: Path, extractor: Extractor) -> str:
    """A note about a file that another program wrote, which does not name its features."""
    return (
        f'{path} does not say which features it was made with; here it counts as made with "{extractor.name}". The '
        "distance is wrong if that is not so: the files of ADM and EDM need legacy_tensorflow, those of clean-fid the "
        "mode that they were made in."
    )


def _double(array: Any, name: str) -> Tensor:
    return torch.from_numpy(_numbers(array, name).astype(np.float64))


def _features(array: Any) -> Tensor:
    found = _numbers(array, "features")
    return torch.from_numpy(found if found.dtype in (np.float32, np.float64) else found.astype(np.float64))


def _numbers(array: Any, name: str) -> Any:
    """An array of real numbers; complex ones would lose their imaginary part when they are converted."""
    array = np.asarray(array)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} must hold real numbers, got {array.dtype}")
    return array


def _checked(source: str, mean: Tensor, covariance: Tensor, features: Tensor | None) -> Reference:
    """A reference of checked arrays; errors name `source`."""
    check_statistics(mean, covariance, (f"mu in {source}", f"sigma in {source}"))
    if features is not None:
        if not bool(features.isfinite().all()):
            raise ValueError(f"features in {source} must be finite, got NaN or infinite values")
        if features.ndim != 2 or features.shape[1] != len(mean) or len(features) < 2:
            raise ValueError(
                f"features in {source} must have the shape (N, {len(mean)}) of mu and at least two rows, got "
                f"{tuple(features.shape)}"
            )
    return Reference(mean, (covariance + covariance.T) / 2, features)


def _check_same_samples(source: str, features: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Raise ValueError if features cannot be samples of a mean and a covariance: their own mean is too far away."""
    apart = float((features.double().mean(dim=0) - mean).square().sum())
    expected = float(covariance.trace()) / len(features)  # of independent samples
    if apart > MOST_APART * expected + 1e-6 * float(mean.square().sum()):
        raise ValueError(
            f"features in {source} must be those of mu and sigma, or a random part of them, got a mean at a "
            f"distance of {apart**0.5:.3g} from mu, expected about {expected**0.5:.3g}; remove them, or write the "
            "file again"
        )


def _verify(arrays: Any) -> None:
    """Raise Damaged if an .npz that `save` wrote has changed. Those of other programs have no checksum."""
    if SHA256 in arrays:
        if unknown := sorted(set(arrays.files) - {*ARRAYS}):  # their sizes were not checked
            raise Damaged(f"it has the array {one_line(unknown[0])}, which fewstep eval stats does not write")
        stored = {name: arrays[name] for name in arrays.files}
        if str(stored.pop(SHA256)) != digest(stored):
            raise Damaged("its checksum does not match: it has changed since it was written")
    elif "extractor" in arrays:
        raise Damaged(f'the array "{SHA256}" with its checksum is missing; write it again with fewstep eval stats')


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
    source = f"clean-fid's statistics {name}"
    try:
        mean, covariance = (_double(part, "a part") for part in found["FID"])
        features = _features(found["KID"]) if "KID" in found else None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source} must be a mean and a covariance ({error})") from error
    return _checked(source, mean, covariance, features)


def check_dimensions(source: str, found: Reference, extractor: Extractor, dimensions: int) -> None:
    """Raise ValueError if a reference's features are not those of `extractor`, which have `dimensions`."""
    if len(found.mean) != dimensions:
        raise ValueError(
            f'the reference "{source}" has {len(found.mean)} dimensions and the features "{extractor.name}" have '
            f"{dimensions}; choose the features that it was made with"
        )
