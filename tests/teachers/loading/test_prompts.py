"""Prompts in all supported file formats: the same rows from each, and error messages."""

import csv
import json
import sys

import pyarrow as pa
import pytest
from pyarrow import parquet

from teachers.loading.prompts import read_prompts

WORDS = ["a coat", "an \u00e9legant bag", "a shoe", "a boot", "a dress"]


def write_prompts(file, column="prompt"):
    rows = [{"id": i, column: word} for i, word in enumerate(WORDS)]
    if file.suffix == ".txt":
        file.write_text("\n\n".join(WORDS), encoding="utf-8")
    elif file.suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    elif file.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist([row | {"image": {"bytes": b"", "path": ""}} for row in rows]), file)
    else:
        with file.open("w", encoding="utf-8", newline="") as stream:
            table = csv.DictWriter(stream, ["id", column], delimiter="\t" if file.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    return str(file)


TABLES = [".jsonl", ".csv", ".tsv", ".parquet"]


@pytest.mark.parametrize("ending", [".txt", *TABLES])
def test_prompts_are_the_same_in_every_format(tmp_path, ending):
    assert read_prompts(write_prompts(tmp_path / f"prompts{ending}")) == WORDS


@pytest.mark.parametrize("ending", TABLES)
def test_missing_column_is_an_error_with_the_existing_columns(tmp_path, ending):
    file = write_prompts(tmp_path / f"prompts{ending}", "words")
    assert read_prompts(file, "words") == WORDS
    with pytest.raises(
        ValueError, match=r"no column called text, prompt or caption; its columns are id, words: .*data"
    ):
        read_prompts(file)
    with pytest.raises(ValueError, match=r"no column 'wrods'; its columns are id, words"):
        read_prompts(file, "wrods")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text', "line 2: this is not JSON"),
        ("a.jsonl", b'"a coat"\n', "line 1: every line"),
        ("a.jsonl", b'{"text": "\xff"}', "not UTF-8"),
        ("a.csv", b"text\n\xff\n", "not UTF-8"),
        ("a.jsonl", b'{"\\u001b[2J\\n": "a"}\n', r"its columns are \\x1b\[2J\\n: rename"),
        ("a.csv", b"text\n\n", "holds no prompts"),
        ("a.csv", b"", "holds no prompts"),
        ("a.parquet", b"PAR1 but not really", "not readable as parquet"),
    ],
)
def test_unreadable_tables_are_errors_of_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_prompts(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_nested_column(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"meta": {"caption": "a coat"}}\n{"meta": {"caption": null}}\n')
    assert read_prompts(str(tmp_path / "a.jsonl"), "meta.caption") == ["a coat"]


def test_byte_order_marks_and_line_breaks_are_removed_from_prompts(tmp_path):
    (tmp_path / "a.csv").write_text('id,caption\n1,a bag\n2,\n3,"a\ncoat"\n')
    (tmp_path / "a.tsv").write_text("\ufeffprompt\tid\na bag\t1\na coat\t2\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text("\ufeffa bag\n\n  a coat \n", encoding="utf-8")
    assert {tuple(read_prompts(str(tmp_path / f"a.{kind}"))) for kind in ("csv", "tsv", "txt")} == {("a bag", "a coat")}


def test_missing_pyarrow_is_an_error_with_the_command_to_install_it(tmp_path, monkeypatch):
    file = write_prompts(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r'needs the package pyarrow: pip install -e "\.\[data\]"'):
        read_prompts(file)
    assert read_prompts(write_prompts(tmp_path / "a.csv")) == WORDS


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_quote_that_is_not_closed_is_an_error(tmp_path, ending):
    (tmp_path / f"a{ending}").write_text('text\n"a dog\na bird\n')
    with pytest.raises(ValueError, match=r"line \d: this is not readable as a table \(unexpected end of data\)"):
        read_prompts(str(tmp_path / f"a{ending}"))


def test_nan_is_a_missing_value(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": NaN}\n{"text": "a coat"}\n{"text": null}\n')
    assert read_prompts(str(tmp_path / "a.jsonl")) == ["a coat"]


def test_group_of_captions_is_an_error_with_their_names(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": {"en": "a coat", "fr": "un manteau"}}\n')
    with pytest.raises(ValueError, match=r"must be one text, got a group \(en, fr\); write one of them"):
        read_prompts(str(tmp_path / "a.jsonl"))
    assert read_prompts(str(tmp_path / "a.jsonl"), "text.fr") == ["un manteau"]


@pytest.mark.parametrize("ending", [".json", ".yaml"])
def test_other_structured_files_are_not_read_as_lines(tmp_path, ending):
    (tmp_path / f"a{ending}").write_text('["a coat", "a bag"]')
    with pytest.raises(ValueError, match=r"must be a text file with one prompt per line, or a table \(\.jsonl, "):
        read_prompts(str(tmp_path / f"a{ending}"))


@pytest.mark.parametrize("name", ["p.csv", "p.tsv"])
def test_repeated_columns_are_an_error(tmp_path, name):
    separator = "\t" if name.endswith("tsv") else ","
    rows = (["id", "text", "text", "", ""], ["1", "a bag", "a coat", "", ""])
    (tmp_path / name).write_text("".join(separator.join(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{name}, line 1: the column 'text' is repeated"):
        read_prompts(str(tmp_path / name))
