"""Random numbers of a batch are the same however it is divided."""

import pytest
import torch

from distill.data.batch_random import LARGE, BatchRandom

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [7, LARGE, LARGE + 1])
def test_rows_do_not_depend_on_the_division_of_the_batch(size):
    whole = BatchRandom(("seed", 3), 0, 20, 20, CPU)
    expected = whole.normal(size), whole.normal(size, 1), whole.uniform()
    assert not torch.equal(expected[0], expected[1].flatten(1)) and len(set(expected[0][:, 0].tolist())) == 20
    for first, last in ((0, 20), (0, 1), (3, 17), (16, 20), (19, 20)):
        part = BatchRandom(("seed", 3), first, last, 20, CPU)
        for one, two in zip((part.normal(size), part.normal(size, 1), part.uniform()), expected, strict=True):
            assert torch.equal(one, two[first:last])


@pytest.mark.parametrize("size", [64, LARGE + 64])
def test_normal_numbers_are_normal_and_rows_are_independent(size):
    values = BatchRandom(("seed", 4), 0, 40, 40, CPU).normal(size).double()
    few = values[:, :64]
    assert few.mean().abs() < 0.1 and (few.std() - 1).abs() < 0.1
    correlation = torch.corrcoef(values) - torch.eye(40)
    assert correlation.abs().max() < 6 / size**0.5
