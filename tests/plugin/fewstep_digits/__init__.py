"""A teacher of another package: a class-conditional rectified-flow transformer that draws handwritten digits.

The network, the pipeline and the classifier are this package's own. The digits are the 1,797 images of 8 x 8 pixels of
"Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, UCI Machine Learning Repository, CC BY 4.0).
"""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent
PIPELINE = FOLDER / "weights" / "pipeline"
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def digits() -> tuple[Tensor, Tensor]:
    """The images, (1797, 1, 8, 8) in [0, 1], and their digits (1797,)."""
    with gzip.open(FOLDER / "digits.csv.gz", "rt", encoding="utf-8") as file:
        rows = torch.from_numpy(np.loadtxt(file, delimiter=","))
    return rows[:, :64].float().reshape(-1, 1, 8, 8) / 16, rows[:, 64].long()
