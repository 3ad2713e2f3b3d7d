"""YAML: numbers are what they look like, and whatever is not YAML is one sentence with the file."""

import pytest

from teachers.support.yaml_files import parse_value, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5), (" 5 ", 5), ("1_000", 1000), ("1e-5", 1e-5), ("0x10", 16), ("0", 0), ("0.5", 0.5), ("'010'", "010")],
)
def test_numbers_are_what_they_look_like(text, value):
    assert parse_value(text) == value


@pytest.mark.parametrize(("text", "base"), [("010", 8), ("-07", 8), ("1:30", 60), ("1:30.5", 60), ("[1, 010]", 8)])
def test_numbers_in_base_8_and_60_are_refused(tmp_path, text, base):
    with pytest.raises(ValueError, match=rf"line 1: YAML reads \S+ as a number in base {base}; write it without"):
        parse_value(text)
    (tmp_path / "a.yaml").write_text(f"a: 1\nb: {{c: {text}}}\n")
    with pytest.raises(ValueError, match=r"a\.yaml is not valid YAML: line 2: YAML reads \S+ as a number in base"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("text", ["a: 1\na: 2\n", "a:\n\t- 1\n", "a: " + "[" * 2000, "a: " + "9" * 5000, "5", "a: *b"])
def test_text_that_is_not_yaml_is_an_error_with_the_file(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"a\.yaml is not valid YAML: "):
        read_yaml(tmp_path / "a.yaml")


def test_aliases_are_followed(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a {lr: 1e-5}\nb: {<<: *a, eps: 1}\n")
    assert read_yaml(tmp_path / "a.yaml")["b"] == {"lr": 1e-5, "eps": 1}
