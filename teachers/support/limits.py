"""Limits on what is read from files: a small file of a stranger must not fill the memory or the disk.

Each limit is far above ordinary use. An environment variable replaces it, and error messages name the variable.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """A limit that an environment variable can replace.

    Attributes:
        variable: The name of the environment variable.
        default: The limit without it.
    """

    variable: str
    default: int

    @property
    def value(self) -> int:
        """The limit.

        Raises:
            ValueError: If the environment variable is not a positive whole number.
        """
        text = os.environ.get(self.variable, "").strip().replace("_", "")
        if not text:
            return self.default
        if not text.isascii() or not text.isdecimal() or len(text) > 18 or int(text) < 1:
            raise ValueError(
                f"{self.variable} must be a whole number of at least 1 and at most 18 digits, got {text!r}"
            )
        return int(text)

    @property
    def advice(self) -> str:
        """How to allow more, for the end of an error message."""
        return f"set {self.variable} in the environment to allow more"


IMAGE_PIXELS = Limit("FEWSTEP_MAX_IMAGE_PIXELS", 50_000_000)  # decoded, of one image
TEXT_BYTES = Limit("FEWSTEP_MAX_TEXT_BYTES", 2**28)  # of a file of prompts or captions
RECIPE_BYTES = Limit("FEWSTEP_MAX_RECIPE_BYTES", 2**18)  # of a recipe or another YAML file
CONFIG_BYTES = Limit("FEWSTEP_MAX_CONFIG_BYTES", 2**22)  # of a JSON file that is read as a whole
CAPTION_BYTES = Limit("FEWSTEP_MAX_CAPTION_BYTES", 2**20)  # of a .txt file beside an image
TABLE_BYTES = Limit("FEWSTEP_MAX_TABLE_BYTES", 2**26)  # of a tokenizer's vocabulary or the index of sharded weights
ARRAY_BYTES = Limit("FEWSTEP_MAX_ARRAY_BYTES", 2**32)  # of the arrays in an .npz file, decompressed
ROW_BYTES = Limit("FEWSTEP_MAX_ROW_BYTES", 2**28)  # of one file in a .tar, or of one value in a .parquet file
PARAMETERS = Limit("FEWSTEP_MAX_PARAMETERS", 200_000_000_000)  # of one network
MODULES = Limit("FEWSTEP_MAX_MODULES", 20_000)  # of one network
SIDE = Limit("FEWSTEP_MAX_SIDE", 4096)  # of a network's inputs or an autoencoder's images
