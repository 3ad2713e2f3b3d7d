"""`fewstep check` of families of clips and sounds."""

import pytest

from distill.check import check
from distill.checks.sizes import parse_sizes
from tests.commands import fewstep
from tests.teachers.families.media import KINDS


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.sampled
def test_every_family_passes(name, tiny_media, capsys):
    _, folder, size = tiny_media(name)
    sizes = [word for key, value in size.items() for word in ("--size", f"{key}={value}")]
    code = fewstep("check", folder, *sizes)
    out = capsys.readouterr().out
    assert code == 0, out
    assert "export, 2 steps" in out and "condition" in out


def test_sizes_are_keys_and_numbers(tiny_media):
    assert parse_sizes(["frames=9", "rate = 12.5"]) == {"frames": 9, "rate": 12.5}
    with pytest.raises(ValueError, match="--size must be a key and a number, such as frames=9, got 'frames'"):
        parse_sizes(["frames"])
    with pytest.raises(ValueError, match=r"teacher.size must have the keys"):
        check(str(tiny_media("LTX")[1]), size={"length": 3})
