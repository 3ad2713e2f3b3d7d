"""Seeds of samples: each sample has its own generators, so its noise does not depend on the batch size or the row."""

import hashlib

LATENTS, NOISE = "initial", "noise"  # what a sample's two generators draw: initial latents, and what the pipeline draws


def sample_seed(index: int, seed: int, stream: str) -> int:
    """The seed of a sample's generator, below 2**32 because a CPU generator uses 32 bits of its seed.

    Args:
        index: The number of the sample.
        seed: The comparison's seed.
        stream: The name of an independent random stream, such as "samples/initial".
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}/{index}".encode()).digest()[:4], "little")
