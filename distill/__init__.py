"""Turning a diffusion teacher into a one- or two-step student."""

__version__ = "0.1.0"
