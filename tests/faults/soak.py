"""Train the pocket teacher for a while and watch the memory: it should stay flat.

    python -m tests.faults.soak [--minutes 60] [--method dmd] [key=value ...]

Samples the resident memory of a training process every second, evaluations and checkpoints included, and ends it with
SIGTERM. Prints one line of JSON; exit code 1 where the last tenth of the time lies 1% above the tenth after half time.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


def watch(process: subprocess.Popen[bytes], minutes: float) -> list[float]:
    """Resident MB, a sample a second from the first finished checkpoint's second on."""
    inside, samples = psutil.Process(process.pid), []
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ValueError(f"the run ended by itself with exit code {process.returncode}")
        samples.append(inside.memory_info().rss / 2**20)
        time.sleep(1)
    return samples


def growth(samples: list[float]) -> float:
    """How much the last tenth lies above the tenth after half time, as a fraction."""
    half, tenth = len(samples) // 2, max(1, len(samples) // 10)
    return statistics.mean(samples[-tenth:]) / statistics.mean(samples[half : half + tenth]) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--method", default="dmd", choices=["dmd", "scm"])
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "distill.train", f"recipes/pocket/{args.method}.yaml", f"output={temporary}"]
        command += ["name=soak", "train.steps=100000000", *args.overrides]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        checkpoints = Path(temporary) / "soak" / "checkpoints"
        while process.poll() is None and not any(checkpoints.glob("0*")):
            time.sleep(0.5)
        samples = watch(process, args.minutes)
        process.send_signal(signal.SIGTERM)
        code = process.wait()
        steps = max(int(path.name) for path in checkpoints.glob("0*"))
    found = {"minutes": args.minutes, "steps": steps, "exit code": code, "resident MB at half time": round(
        samples[len(samples) // 2]), "at the end": round(samples[-1]), "most": round(max(samples)),
        "growth over the second half": f"{growth(samples):.2%}"}  # fmt: skip
    print(json.dumps(found))
    sys.exit(int(code != 0 or growth(samples) > 0.01))


if __name__ == "__main__":
    main()
