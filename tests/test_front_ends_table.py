"""The table of front ends: rows of other families stay, and every cell is a number or a refusal."""

from benchmarks.front_ends import FAMILIES, METHODS, fill, kept
from benchmarks.wild.cells import CELLS


def test_rows_of_other_families_are_kept(tmp_path):
    cells = ["1e-06"] * len(METHODS)
    lines = [["front end", "family", *METHODS], ["---"] * (len(METHODS) + 2)]
    lines += [["documented call", family, *cells] for family in FAMILIES[:2]]
    file = tmp_path / "front_ends.md"
    file.write_text("# Title\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in lines) + "\n")
    assert kept(file, FAMILIES[:1]) == [["documented call", FAMILIES[1], *cells]]
    assert kept(tmp_path / "missing.md", FAMILIES) == []


def test_errors_become_refusals(monkeypatch):
    def refuse(case):
        raise ValueError("a | b\nsentence")

    monkeypatch.setitem(CELLS, "documented call", refuse)
    assert fill(None, "documented call") == "refused: a / b sentence"
