"""Overrides: text stays as it is given, other values are YAML, and a saved recipe is the recipe that ran."""

import pytest

from distill.config.recipe import load
from distill.config.saved import save
from teachers.support.text import folder_name_problem

TEXTS = (
    "a=b.txt",
    "my run/p.txt",
    "run #1.txt",
    "a #2",
    "x: y.txt",
    "a, b.txt",
    "[a].txt",
    "{a}.txt",
    "007",
    "0x1F",
    "1e3",
    "1e-5",
    ".5",
    "1_000",
    "12:30",
    "2026-01-02",
    "no",
    "on",
    "True",
    "Null",
    "~",
    "none",
    ".inf",
    ".nan",
    "über.txt",
    "日本",
    "a'b.txt",
    '"q".txt',
    "'q'",
    "&a.txt",
    "*a.txt",
    "!a",
    "|",
    ">",
    "-",
    "- a",
    "?",
    "@x",
    "%y",
    "`z`",
    "100%.txt",
    " a ",
    "a\\b",
    "a\tb",
    "#",
)


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "a.yaml"
    text = f"name: r\noutput: {tmp_path}\nteacher: {{path: pocket}}\nmethod: {{name: dmd}}\ndata: {{prompts: pocket}}\n"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.first_is_quick
def test_text_stays_as_it_is_given(recipe, text):
    assert load(recipe, [f"data.prompts={text}"]).data.prompts == text
    assert load(recipe, [f"output={text}"]).output == text


@pytest.mark.parametrize("text", [text for text in TEXTS if "/" not in text])
@pytest.mark.first_is_quick
def test_saved_recipe_is_the_recipe(recipe, text):
    is_name = folder_name_problem(text) is None
    first = load(recipe, [f"name={text}" if is_name else "name=r", f"data.prompts={text}"])
    first.folder.mkdir()
    save(first)
    assert first.name == (text if is_name else "r")
    assert load(first.folder / "recipe.yaml") == first


def test_null_unsets_optional_text_only(recipe):
    assert load(recipe, ["data.prompts=null"]).data.prompts is None
    assert load(recipe, ["name=null"]).name == "null"


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_choices_are_text(recipe, precision):
    assert load(recipe, [f"train.precision={precision}"]).train.precision == precision
    with pytest.raises(ValueError, match=r"train\.precision must be one of no, bf16, fp16, got 'off'"):
        load(recipe, ["train.precision=off"])


def test_other_values_are_yaml(recipe):
    words = ["train.steps=5", "train.ema=.9", "memory.checkpointing=null", "optimizers.student.lr=1e-5"]
    words += ["optimizers.student.betas=[0.5, 0.6]", "train={log_every: 3}", "optimizers={fake_score: {lr: 2}}"]
    found = load(recipe, words)
    assert (found.train.steps, found.train.ema, found.train.log_every) == (5, 0.9, 3)
    assert found.memory.checkpointing is None
    assert (found.optimizers["student"].lr, found.optimizers["student"].betas) == (1e-5, (0.5, 0.6))
    assert found.optimizers["fake_score"].lr == 2


def test_options_of_the_method_that_the_words_choose(recipe):
    assert load(recipe, ["method.second_times=[1.0]", "method.name=scm"]).method == {
        "name": "scm",
        "second_times": [1.0],
    }
    assert load(recipe, ["method={name: rcm}", "method.dmd.gan_weight=0.5"]).method["dmd"] == {"gan_weight": 0.5}


def test_later_words_win(recipe):
    assert load(recipe, ["name=a", "name=b", "train.steps=1", "train={steps: 2}"]).train.steps == 2
    assert load(recipe, ["name=a", "name=b"]).name == "b"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("name.x=1", r"name\.x=1 sets a key of name, which holds 'r', not a group"),
        ("train.steps=[1", r"train\.steps must be a YAML value, got '\[1'"),
        ("optimizers.student.betas[0]=1", r"must be a list of 2 values|not a group"),
        ("train..steps=1", "unknown key 'train.'"),
        ("=1", "must have the form key=value"),
        ("teacher.path=${oc.env:HOME}", "interpolation"),
        ("name=a/b", "plain folder name"),
    ],
)
def test_wrong_words_are_errors(recipe, word, message):
    with pytest.raises(ValueError, match=message):
        load(recipe, [word])


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_recipe_files_with_byte_order_mark_and_other_line_ends(recipe, mark, end):
    recipe.write_bytes(mark + recipe.read_bytes().replace(b"\n", end.encode()))
    assert load(recipe).name == "r"


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_recipe_file_in_another_encoding_is_an_error(recipe, encoding):
    recipe.write_bytes(recipe.read_text(encoding="utf-8").replace("name: r", "name: für").encode(encoding))
    with pytest.raises(ValueError, match=r"a\.yaml, line 1: .*save the file as UTF-8"):
        load(recipe)
