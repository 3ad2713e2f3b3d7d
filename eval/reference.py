"""What samples are compared with: statistics made beforehand, a folder of real images, or the teacher's own samples."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from eval.features import Extractor
from eval.fid import statistics
from teachers import pocket

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class Reference:
    """Mean (D,) and covariance (D, D) in float64, and where they are known the features (N, D) behind them."""

    mean: Tensor
    covariance: Tensor
    features: Tensor | None = None


def reference(source: str, extractor: Extractor) -> Reference:
    """What `source` holds: "pocket", an .npz with mu and sigma (and perhaps features), or a folder of images.

    Raises ValueError where the source is missing, is not what it should be, or was made with other features.
    """
    if source == "pocket":
        if extractor.name != "pocket":
            raise ValueError(
                f'the reference "pocket" holds the pocket classifier\'s features, not "{extractor.name}"; '
                "choose --features pocket or another --reference"
            )
        if not (pocket.FOLDER / "reference.safetensors").is_file():
            raise ValueError(f'{pocket.FOLDER} holds no reference; make it with "python -m teachers.pocket.make"')
        return Reference(*pocket.reference(), pocket.reference_features())
    path = Path(source)
    if path.is_dir():
        features = _features_of_folder(path, extractor)
        return Reference(*statistics(features), features)
    if not path.is_file():
        raise ValueError(f'there is no reference "{source}"; give an .npz with mu and sigma, or a folder of images')
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mean, covariance = (torch.from_numpy(np.asarray(arrays[key], dtype=np.float64)) for key in ("mu", "sigma"))
            rows = torch.from_numpy(arrays["features"]) if "features" in arrays else None
    except (OSError, ValueError, KeyError, EOFError, AttributeError, TypeError) as error:
        raise ValueError(f"{source} is not an .npz with the arrays mu and sigma; make it anew ({error})") from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{source} holds mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)}; want (D,) and (D, D)"
        )
    return Reference(mean, covariance, rows)


def _features_of_folder(folder: Path, extractor: Extractor) -> Tensor:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGES)
    if len(files) < 2:
        raise ValueError(f"{folder} holds {len(files)} images; a reference needs at least two, better thousands")
    features = []
    for file in files:  # one by one, since real images come in all sizes
        try:
            with Image.open(file) as image:
                features.append(extractor(to_tensor(image.convert("RGB"))[None]))
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{file} cannot be read as an image; take it out of the reference ({error})") from error
    return torch.cat(features)
