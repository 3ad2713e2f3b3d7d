"""`fewstep check`: passes for every family, and fails where a family or an export is wrong."""

import pytest
import torch

from distill.check import check
from distill.checks.table import Check, table
from distill.checks.teacher_checks import check_teacher
from distill.config.registry import TEACHERS, find
from tests.commands import fewstep
from tests.teachers.families.variants import VARIANTS

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.sampled
def test_every_family_passes(name, folder_of, capsys):
    family, folder = folder_of(name)
    code = fewstep("check", folder, "--family", family)
    out = capsys.readouterr().out
    assert code == 0, out
    assert out.splitlines()[0].split() == ["check", "largest", "difference", "tolerance", "ok"]


WRONG = {
    "condition": lambda cls: {"condition": lambda self, prompts: shifted(cls.condition(self, prompts))},
    "null condition": lambda cls: {"encode_null_condition": lambda self: shifted(self.condition(["a coat"]))},
    "decode": lambda cls: {"decode": lambda self, latents: cls.decode(self, 1.1 * latents)},
    "export, 2 steps": lambda cls: {
        "timesteps_call": lambda self, student, times: {"timesteps": [900, 300][: len(times)]}
    },
    "encode, then decode": lambda cls: {"encode": lambda self, images: cls.encode(self, 0.9 * images)},
}


def shifted(cond):
    return {key: value + 0.1 for key, value in cond.items()}


@pytest.mark.slow
@pytest.mark.parametrize("check_name", WRONG)
@pytest.mark.sampled
def test_a_wrong_family_fails_the_check_that_names_the_fault(check_name, text_pipeline):
    cls = find(TEACHERS, "stable_diffusion")
    wrong = type("Wrong", (cls,), WRONG[check_name](cls))
    failed = [result.name for result in check_teacher(wrong, str(text_pipeline), CPU) if not result.passed]
    assert check_name in failed


def test_a_difference_that_is_not_a_number_fails():
    assert not Check("x", float("nan"), 1e-3).passed
    assert "NO" in table([Check("x", float("nan"), 1e-3)])


@pytest.mark.slow
def test_unknown_families_are_refused(text_pipeline):
    with pytest.raises(ValueError, match="there is no teacher family 'nothing'"):
        check(str(text_pipeline), "nothing")
