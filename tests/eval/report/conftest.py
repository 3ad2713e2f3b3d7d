"""Fixtures of the report's tests."""

from pathlib import Path

import pytest
import torch

from eval.report import write_report
from tests.eval.report.example import example_report


@pytest.fixture
def report() -> dict:
    """An example of report.json's content."""
    return example_report()


@pytest.fixture
def written(report, tmp_path) -> Path:
    """A folder with the files of the example report."""
    write_report(report, [torch.rand(3, 3, 8, 8) for _ in report["rows"]], tmp_path)
    return tmp_path
