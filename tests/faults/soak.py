"""Train for a long time and measure the memory, which should stay constant.

    python -m tests.faults.soak [--minutes 60] [--method dmd] [--write] [key=value ...]

Samples the resident memory of a training process every second from its first checkpoint on, including evaluations and
checkpoints, and ends it with SIGTERM. Two numbers of the second half of the samples are checked: the rise of the
least-squares line, which single samples hardly change, and the mean of the last fifth over the mean of the first fifth,
which shows a step that a line would smooth. Prints one line of JSON; exit code 1 if either rises by 1%.
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

from tests.settings import ROOT

RESULT = ROOT / "benchmarks" / "results" / "soak.json"
MAX_GROWTH = 0.01


def watch(process: subprocess.Popen[bytes], minutes: float) -> list[float]:
    """Resident memory in MB, one sample per second; ValueError if the run ends."""
    training, samples = psutil.Process(process.pid), []
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ValueError(f"the run ended with exit code {process.returncode}")
        samples.append(training.memory_info().rss / 2**20)
        time.sleep(1)
    return samples


def growth(samples: list[float]) -> tuple[float, float]:
    """The growth in the second half of `samples`, as fractions: of the least-squares line, and of the last fifth over
    the first fifth."""
    half = samples[len(samples) // 2 :]
    fifth = max(1, len(half) // 5)
    slope, start = statistics.linear_regression(range(len(half)), half)
    return slope * (len(half) - 1) / start, statistics.mean(half[-fifth:]) / statistics.mean(half[:fifth]) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--method", default="dmd", choices=["dmd", "scm"])
    parser.add_argument("--write", action="store_true", help=f"write the result to {RESULT.name}")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "distill.train", f"recipes/pocket/{args.method}.yaml", f"output={temporary}"]
        command += ["name=soak", "train.steps=100000000", *args.overrides]
        checkpoints = Path(temporary) / "soak" / "checkpoints"
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        try:
            while process.poll() is None and not any(checkpoints.glob("0*")):
                time.sleep(0.5)
            samples = watch(process, args.minutes)
            process.send_signal(signal.SIGTERM)
            code = process.wait()
        finally:  # if this process is ended, the training ends too
            process.kill()
            process.wait()
        steps = max(int(path.name) for path in checkpoints.glob("0*"))
    line, ends = growth(samples)
    result = {
        "command": f"python -m tests.faults.soak --minutes {args.minutes:g} --method {args.method}",
        "steps": steps,
        "exit code": code,
        "resident MB after half of the time": round(samples[len(samples) // 2]),
        "at the end": round(samples[-1]),
        "largest": round(max(samples)),
        "second half, rise of its line": f"{line:.2%}",
        "second half, last fifth over first": f"{ends:.2%}",
        "MB for each minute": [round(statistics.mean(samples[i : i + 60])) for i in range(0, len(samples), 60)],
    }
    print(json.dumps(result))
    if args.write:
        RESULT.write_text(json.dumps(result) + "\n")
    sys.exit(int(code != 0 or max(line, ends) > MAX_GROWTH))


if __name__ == "__main__":
    main()
