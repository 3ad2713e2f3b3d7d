"""Runs a script in a process that cannot import this project."""

import subprocess
import sys
from pathlib import Path

BLOCK_IMPORTS = """
import sys
for name in ("distill", "teachers", "eval"):
    sys.modules[name] = None  # importing it fails
"""


def run_standalone(script: str, *arguments: str, folder: Path) -> None:
    """Run `script` in `folder` with command-line `arguments`; fails if the process does."""
    (folder / "script.py").write_text(BLOCK_IMPORTS + script)
    command = [sys.executable, "script.py", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
