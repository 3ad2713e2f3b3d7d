"""The reader of text files, and the encoding of every file that this project opens."""

import ast
from pathlib import Path

import pytest

from teachers.support.text import agree, counted, first_names, printable, read_lines, read_text, shorten, split_lines

ROOT = Path(__file__).parents[3]
PACKAGES = ("distill", "eval", "teachers", "benchmarks", "docs")


NOTES = {  # as readers of samples write them
    "are silent": "is silent",
    "are skipped because they cannot be used or have no caption": "is skipped because it cannot be used or has no "
    "caption",
    "exceed full scale and are clipped to [-1, 1]": "exceeds full scale and is clipped to [-1, 1]",
    "have two channels, which are averaged": "has two channels, which are averaged",
    "are longer than 1 s; only their beginning is used": "is longer than 1 s; only its beginning is used",
    "are shorter than 1 s and end with silence": "is shorter than 1 s and ends with silence",
    "have fewer than 8 frames per second, so that frames are repeated": "has fewer than 8 frames per second, so that "
    "frames are repeated",
    "do what a plug-in says": "do what a plug-in says",
}


@pytest.mark.parametrize("note", NOTES)
def test_one_thing_is_in_the_singular(note):
    assert agree(1, note) == NOTES[note]
    assert agree(0, note) == agree(2, note) == note


def test_things_are_counted():
    assert [counted(n, "file") for n in (0, 1, 1200)] == ["0 files", "1 file", "1,200 files"]
    assert counted(2, "mouse", "mice") == "2 mice"


def test_first_names_say_how_many_more_there_are():
    assert first_names(["a", "b"], 2) == "a, b"
    assert first_names([f"{n}\n" for n in range(1003)], 2) == "0\\n, 1\\n and 1,001 more"
    assert first_names([]) == ""


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_at_line_feeds_and_carriage_returns_only(tmp_path, mark, end):
    lines = ["für", "a\u2028b\u2029c", "a\x0bb\x0cc", "a\x85b", "a\x1cb\x1dc\x1ed", "", "日本 \U0001f45f"]
    (tmp_path / "a.txt").write_bytes(mark + end.join(lines).encode())
    assert read_lines(tmp_path / "a.txt") == lines


def test_only_the_first_byte_order_mark_is_dropped(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf\xef\xbb\xbfa")
    assert read_text(tmp_path / "a.txt") == "\ufeffa"
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf")
    assert read_text(tmp_path / "b.txt") == ""
    assert split_lines("a\r\n\r\nb\n\rc") == ["a", "", "b", "", "c"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("a café".encode("cp1252"), 1),
        ("a\nb\n\nein Mädchen".encode("latin-1"), 4),
        ("a bag".encode("utf-16"), 1),
        ("a bag".encode("utf-16-be"), 1),
        ("a bag\n".encode("utf-16-le"), 1),
        ("a bag".encode("utf-32"), 1),
        ("日本".encode("shift-jis"), 1),
        (b"a\nb\n\xed\xa0\x80", 3),
        (b"a\nbroken at the end \xc3", 2),
        (b"a\nbin\0ary", 2),
    ],
)
def test_other_encodings_are_errors_with_file_and_line(tmp_path, content, line):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.txt, line {line}: .*save the file as UTF-8") as error:
        read_text(tmp_path / "a.txt")
    assert type(error.value) is ValueError


def test_control_characters_in_names_are_escaped():
    assert printable("a\nb\x1b[31m\u2028\udcfc für 日本.png") == "a\\nb\\x1b[31m\\u2028\\udcfc für 日本.png"


def opens_text_without_encoding(node: ast.AST) -> bool:
    """Whether a call opens a file or a process's output as text in the machine's encoding."""
    if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
        return False
    owner = node.func.value if isinstance(node.func, ast.Attribute) else None
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if isinstance(owner, ast.Name) and (owner.id, name) in {("os", "open"), ("Image", "open"), ("tarfile", "open")}:
        return False
    if name in ("run", "Popen", "check_output"):
        return any(
            keyword.arg in ("text", "universal_newlines") and getattr(keyword.value, "value", None)
            for keyword in node.keywords
        )
    if name == "read_text":
        return owner is not None and not node.args
    if name == "write_text":
        return len(node.args) < 2
    if name not in ("open", "fdopen"):
        return False
    arguments = node.args[1:] if owner is None or name == "fdopen" else node.args
    mode = next((keyword.value for keyword in node.keywords if keyword.arg == "mode"), *arguments[:1] or [None])
    return mode is None or "b" not in str(getattr(mode, "value", "b"))


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("open(p)", True),
        ("open(p, 'rb')", False),
        ("open(p, mode='a')", True),
        ("p.open('w', encoding='utf-8')", False),
        ("p.open()", True),
        ("p.read_text()", True),
        ("p.write_text(t)", True),
        ("os.open(p, os.O_RDONLY)", False),
        ("subprocess.run(c, text=True)", True),
        ("read_text(p)", False),
    ],
)
def test_calls_without_encoding_are_found(code, found):
    assert opens_text_without_encoding(ast.parse(code, mode="eval").body) is found


@pytest.mark.slow
def test_every_file_is_opened_with_an_encoding():
    """Otherwise a run under LC_ALL=C or on Windows reads and writes other bytes."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    wrong = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if opens_text_without_encoding(node)
    ]
    assert len(files) > 100 and not wrong


def test_shortened_text_keeps_beginning_and_end():
    assert shorten("abc", 3) == "abc"
    assert shorten("a" * 500 + "z", 100) == "a" * 75 + " ... " + "a" * 24 + "z"
