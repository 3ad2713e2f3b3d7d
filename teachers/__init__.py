"""Making every foreign diffusion model speak one language: the canonical time of TrigFlow."""
