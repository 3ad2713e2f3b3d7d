"""Train the pocket teacher for a while and watch the memory: it should stay flat.

    python -m tests.faults.soak [--minutes 60] [--method dmd] [--write] [key=value ...]

Samples the resident memory of a training process every second from its first checkpoint on, evaluations and checkpoints
included, and ends it with SIGTERM. What counts is the second half of the time (of an hour, the last half hour): the
straight line through its samples by least squares, which no single sample bends, and beside it the mean of its last
fifth over that of its first, which sees a step that a line would soften. Prints one line of JSON; exit code 1 where
either rises by 1%.
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
MOST = 0.01


def watch(process: subprocess.Popen[bytes], minutes: float) -> list[float]:
    """Resident MB, a sample a second; ValueError where the run ends by itself."""
    inside, samples = psutil.Process(process.pid), []
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ValueError(f"the run ended by itself with exit code {process.returncode}")
        samples.append(inside.memory_info().rss / 2**20)
        time.sleep(1)
    return samples


def growth(samples: list[float]) -> tuple[float, float]:
    """Of the second half of `samples`, as fractions: the rise of its least-squares line, and of its last fifth over its
    first."""
    half = samples[len(samples) // 2 :]
    fifth = max(1, len(half) // 5)
    slope, start = statistics.linear_regression(range(len(half)), half)
    return slope * (len(half) - 1) / start, statistics.mean(half[-fifth:]) / statistics.mean(half[:fifth]) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--method", default="dmd", choices=["dmd", "scm"])
    parser.add_argument("--write", action="store_true", help=f"keep the line in {RESULT.name}")
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
        finally:  # where this one is ended itself, it leaves no training behind
            process.kill()
            process.wait()
        steps = max(int(path.name) for path in checkpoints.glob("0*"))
    line, ends = growth(samples)
    found = {
        "command": f"python -m tests.faults.soak --minutes {args.minutes:g} --method {args.method}",
        "steps": steps,
        "exit code": code,
        "resident MB at half time": round(samples[len(samples) // 2]),
        "at the end": round(samples[-1]),
        "most": round(max(samples)),
        "second half, rise of its line": f"{line:.2%}",
        "second half, last fifth over first": f"{ends:.2%}",
        "MB by the minute": [round(statistics.mean(samples[i : i + 60])) for i in range(0, len(samples), 60)],
    }
    print(json.dumps(found))
    if args.write:
        RESULT.write_text(json.dumps(found) + "\n")
    sys.exit(int(code != 0 or max(line, ends) > MOST))


if __name__ == "__main__":
    main()
