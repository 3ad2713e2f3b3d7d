"""Loading, calling and measuring diffusers pipelines."""
