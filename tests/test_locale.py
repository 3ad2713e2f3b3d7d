"""Commands in an environment whose encoding is ASCII."""

import os
import subprocess
import sys

import pytest

from tests.settings import FAST, RECIPES

ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "LANG": "C"}


def run(*words: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, check=False, env=os.environ | ASCII, timeout=280)


@pytest.mark.parametrize(
    ("code", "out", "error", "exit_code"),
    [
        ("print('f\\xfcr \\u65e5')", rb"f\xfcr \u65e5", b"", 0),
        ("raise_(ValueError('f\\xfcr\\nname\\x1b.png'))", b"", rb"error: f\xfcr name\x1b.png", 2),
        (
            "'f\\xfcr'.encode('ascii')",
            b"",
            rb"error: 'f\xfcr' cannot be written in this machine's encoding, ascii; set",
            2,
        ),
    ],
)
@pytest.mark.first_is_quick
def test_text_that_cannot_be_printed_is_escaped(code, out, error, exit_code):
    done = run(
        "-c",
        "import sys\nfrom teachers.support.errors import run_cli\ndef raise_(e): raise e\n"
        f"sys.exit(run_cli(lambda: {code}))",
    )
    assert done.returncode == exit_code
    assert done.stdout.strip() == out
    assert done.stderr.strip().startswith(error) and b"Traceback" not in done.stderr


@pytest.mark.exhaustive
def test_prompts_with_umlauts_are_trained_and_exported(tmp_path, text_pipeline):
    (tmp_path / "p.txt").write_text("ein Kleid für Mädchen\na photo of a bag\n", encoding="utf-8")
    words = [f"data.prompts={tmp_path / 'p.txt'}", f"output={tmp_path}", "name=r", "train.steps=1"]
    done = run("-m", "distill.train", RECIPES / "dmd.yaml", *FAST, *words, f"teacher.path={text_pipeline}")
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-500:]
    stored = (tmp_path / "r" / "pipeline" / "training_prompts.txt").read_bytes()
    assert stored == "ein Kleid für Mädchen\na photo of a bag\n".encode()
