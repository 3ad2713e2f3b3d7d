"""Metrics, one file each, their confidence intervals, and the interface for metrics of other packages (`base`)."""
