"""Fixture of the networks' tests: teachers with LoRA."""

import pytest
import torch

from distill.config.registry import TEACHERS, find


@pytest.fixture
def load(tiny):
    """Function load(name, precision) -> a new teacher with LoRA enabled."""

    def teacher(name, precision=torch.float32, rank=4):
        family, folder = tiny(name)
        torch.manual_seed(0)
        loaded = find(TEACHERS, family).load(str(folder), torch.device("cpu"), precision)
        loaded.enable_lora(rank)
        return loaded

    return teacher
