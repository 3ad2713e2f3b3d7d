"""What samples are compared with: statistics made beforehand, a folder of real images, or the teacher's own samples."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cleanfid.features import get_reference_statistics
from torch import Tensor

from eval.config.names import INCEPTION_MODES
from eval.features.extractors import Extractor
from eval.features.image_folder import features_of_folder
from eval.metrics.fid import statistics
from teachers import pocket
from teachers.support.files import atomic_write

NAMED = "clean-fid:"


@dataclass(frozen=True)
class Reference:
    """Mean (D,) and covariance (D, D) in float64, and where they are known the features (N, D) behind them."""

    mean: Tensor
    covariance: Tensor
    features: Tensor | None = None


def reference(source: str, extractor: Extractor, size: int | None = None) -> Reference:
    """What `source` holds: "pocket", a folder of images, an .npz with mu and sigma (and perhaps features), or one of
    clean-fid's own statistics as "clean-fid:NAME/RESOLUTION/SPLIT", such as "clean-fid:cifar10/32/train".

    The .npz files of EDM and ADM load, and so do those of `python -m eval stats` and clean-fid. A folder's images are
    brought to `size` (see `eval.features.resize`). Raises ValueError where the source is missing, is not what it should be, or
    was made with other features or at another size.
    """
    if source == "pocket":
        if extractor.name != "pocket":
            raise ValueError(
                f'the reference "pocket" holds the pocket classifier\'s features, not "{extractor.name}"; '
                "choose --features pocket or another --reference"
            )
        if not (pocket.FOLDER / "reference.safetensors").is_file():
            raise ValueError(f'{pocket.FOLDER} holds no reference; make it with "python -m benchmarks.pocket.make"')
        return Reference(*pocket.reference(), pocket.reference_features())
    if source.startswith(NAMED):
        return _named(source.removeprefix(NAMED), extractor)
    path = Path(source)
    if path.is_dir():
        features = features_of_folder(path, extractor, size=size)
        return Reference(*statistics(features), features)
    if not path.is_file():
        raise ValueError(f'there is no reference "{source}"; give an .npz with mu and sigma, or a folder of images')
    return _stored(path, extractor, size)


def save(path: Path, found: Reference, extractor: Extractor, size: int | None = None) -> None:
    """Write an .npz that `reference` and whoever knows mu and sigma can read; the file appears whole."""
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
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); choose another place with -o") from error


def _stored(path: Path, extractor: Extractor, size: int | None) -> Reference:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mean, covariance = (torch.from_numpy(np.asarray(arrays[key], dtype=np.float64)) for key in ("mu", "sigma"))
            rows = torch.from_numpy(arrays["features"]) if "features" in arrays else None
            made = str(arrays["extractor"]) if "extractor" in arrays else extractor.name
            made_at = int(arrays["size"]) if "size" in arrays else 0  # 0: images as they were
    except (OSError, ValueError, KeyError, EOFError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not an .npz with the arrays mu and sigma; make it anew ({error})") from error
    if made != extractor.name:
        raise ValueError(
            f'{path} was made with the features "{made}", not "{extractor.name}"; choose --features {made}'
        )
    if made_at not in (0, size):
        raise ValueError(f"{path} was made of images of {made_at} x {made_at} pixels; choose --size {made_at}")
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{path} holds mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)}; want (D,) and (D, D)"
        )
    return Reference(mean, covariance, rows)


def _named(name: str, extractor: Extractor) -> Reference:
    """One of clean-fid's own statistics, from its cache or its server; NAME/na/custom is one made on this machine."""
    parts = name.split("/")
    if len(parts) != 3:
        raise ValueError(f'"{NAMED}{name}" is not {NAMED}NAME/RESOLUTION/SPLIT, such as {NAMED}cifar10/32/train')
    if extractor.name not in INCEPTION_MODES:
        raise ValueError(
            f"clean-fid's statistics are of Inception's features, not \"{extractor.name}\"; choose --features clean"
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
                    f"clean-fid has no statistics {name} in mode {extractor.name}, or could not fetch them ({error}); "
                    "give a folder of images or an .npz instead"
                ) from error
    mean, covariance = (torch.from_numpy(np.asarray(part, dtype=np.float64)) for part in found["FID"])
    return Reference(mean, covariance, torch.from_numpy(found["KID"]) if "KID" in found else None)
