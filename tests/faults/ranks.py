"""One of two launched processes is killed, or gets SIGTERM, or their recipe is wrong: what the launcher's user sees.

    python -m tests.faults.ranks [--only killed asked mistaken] [--teacher pocket]

Launches recipes/accelerate/two_cpu.yaml through accelerate, does it to the second process in the middle of training,
and lets one process go on from what is left. A line of JSON a case; exit code 1 where one is not as it should be.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from distill.config.recipe import load
from distill.train import train
from distill.training import checkpoint
from tests.faults import kill
from tests.settings import ROOT

SETTINGS = [*kill.SETTINGS, "name=run", "train.batch_size=4"]  # the later one counts


def launch(overrides: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", "recipes/accelerate/two_cpu.yaml", "-m", "distill.train", "recipes/pocket/dmd.yaml"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*command, *overrides], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def second(launcher: subprocess.Popen[str]) -> psutil.Process:
    """The launched process of rank 1."""
    children = psutil.Process(launcher.pid).children(recursive=True)
    return next(child for child in children if child.environ().get("RANK") == "1")


def case(name: str, teacher: str, output: Path) -> tuple[dict[str, object], bool]:
    """What happened, and whether it should have."""
    common = [*SETTINGS, f"output={output}", f"teacher.path={teacher}"]
    wrong = ["train.stepz=5"] if name == "mistaken" else []
    launcher = launch([*common, *wrong, "train.steps=100000"])
    log = output / "run" / "log.jsonl"
    if not wrong:
        while not (log.is_file() and len(log.read_text().splitlines()) >= 4):
            time.sleep(0.1)
            if launcher.poll() is not None:
                raise ValueError(launcher.communicate()[0])
        second(launcher).send_signal(signal.SIGKILL if name == "killed" else signal.SIGTERM)
    begun = time.monotonic()
    said = launcher.communicate()[0]
    seconds = round(time.monotonic() - begun, 1)
    found: dict[str, object] = {"case": name, "exit code": launcher.returncode, "ended after": f"{seconds} s"}
    if wrong:
        found["told"] = said.strip().splitlines()[-2].strip()
        return found, "unknown key 'train.stepz'" in said and "unknown key 'train.stepz'" in str(found["told"])
    steps = checkpoint.steps(output / "run" / "checkpoints")
    reached = json.loads(log.read_text().splitlines()[-1])["step"]
    train(load(ROOT / "recipes" / "pocket" / "dmd.yaml", [*common, f"train.steps={steps[-1] + 2}"]))
    found |= {"reached": reached, "steps lost": reached - steps[-1], "went on with one process": True}
    if name == "asked":
        return found | {"told": f"stopped at step {reached}" in said}, launcher.returncode == 0 and reached == steps[-1]
    return found, launcher.returncode != 0 and seconds < 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="pocket", help='"pocket", or a pipeline of its shape')
    names = ["killed", "asked", "mistaken"]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    args = parser.parse_args()
    good = True
    for name in args.only:
        with tempfile.TemporaryDirectory() as temporary:
            found, right = case(name, args.teacher, Path(temporary))
        good &= right
        print(json.dumps(found | {"as it should be": right}), flush=True)
    sys.exit(int(not good))


if __name__ == "__main__":
    main()
