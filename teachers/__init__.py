"""Diffusion models of every kind in one coordinate: the canonical time of TrigFlow."""

import logging

# diffusers imports bitsandbytes if it is installed, which then warns about kernels that this project does not use.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
