"""Kill, stop or suspend one of two launched processes, or give them a wrong recipe, and check what the user sees.

    python -m tests.faults.ranks [--only killed stopped suspended mistaken] [--teacher pocket]

Launches recipes/accelerate/two_cpu.yaml through accelerate, acts on the second process in the middle of training, and
continues with one process. Prints one line of JSON for each case; exit code 1 if a case fails.
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

SETTINGS = [*kill.SETTINGS, "name=run", "train.batch_size=4"]  # the last value counts

SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGTERM, "suspended": signal.SIGSTOP}


def launch(overrides: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", "recipes/accelerate/two_cpu.yaml", "-m", "distill.train", "recipes/pocket/dmd.yaml"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*command, *overrides], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def second(launcher: subprocess.Popen[str]) -> psutil.Process:
    """The process of rank 1."""
    children = psutil.Process(launcher.pid).children(recursive=True)
    return next(child for child in children if child.environ().get("RANK") == "1")


def case(name: str, teacher: str, output: Path) -> tuple[dict[str, object], bool]:
    """Run one case; returns what happened, and whether it is correct."""
    common = [*SETTINGS, f"output={output}", f"teacher.path={teacher}"]
    wrong = ["train.stepz=5"] if name == "mistaken" else []
    launcher = launch([*common, *wrong, "train.steps=100000"])
    log = output / "run" / "log.jsonl"
    if not wrong:
        while not (log.is_file() and len(log.read_text().splitlines()) >= 4):
            time.sleep(0.1)
            if launcher.poll() is not None:
                raise ValueError(launcher.communicate()[0])
        second(launcher).send_signal(SIGNALS[name])
    start = time.monotonic()
    output_text = launcher.communicate()[0]
    seconds = round(time.monotonic() - start, 1)
    result: dict[str, object] = {"case": name, "exit code": launcher.returncode, "ended after": f"{seconds} s"}
    if wrong:
        result["message"] = output_text.strip().splitlines()[-2].strip()
        return result, "unknown key 'train.stepz'" in str(result["message"])
    steps = checkpoint.saved_steps(output / "run" / "checkpoints")
    last = json.loads(log.read_text().splitlines()[-1])["step"]
    train(load(ROOT / "recipes" / "pocket" / "dmd.yaml", [*common, f"train.steps={steps[-1] + 2}"]))
    result |= {"last step": last, "steps lost": last - steps[-1], "continued with one process": True}
    if name == "stopped":
        printed = f"stopped at step {last}" in output_text
        return result | {"message printed": printed}, launcher.returncode == 0 and last == steps[-1]
    if name == "suspended":  # the watchdog's timeout, then the agent's before it kills a suspended process
        return result, launcher.returncode != 0 and "process 1 has not responded" in output_text and seconds < 120
    return result, launcher.returncode != 0 and seconds < 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="pocket", help='"pocket", or a pipeline with the same shapes')
    names = [*SIGNALS, "mistaken"]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    args = parser.parse_args()
    all_correct = True
    for name in args.only:
        with tempfile.TemporaryDirectory() as temporary:
            result, correct = case(name, args.teacher, Path(temporary))
        all_correct &= correct
        print(json.dumps(result | {"correct": correct}), flush=True)
    sys.exit(int(not all_correct))


if __name__ == "__main__":
    main()
