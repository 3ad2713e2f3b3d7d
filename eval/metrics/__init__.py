"""Metrics, one file each, with their confidence intervals."""
