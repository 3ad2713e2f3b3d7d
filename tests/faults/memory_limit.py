"""The kernel's out-of-memory killer ends a run in a cgroup; the run continues with bitwise the same weights.

    python -m tests.faults.memory_limit [--teacher pocket]

Needs root and the memory controller of cgroup v1 or v2. The run gets a limit 100 MB above what it uses, then another
process of the same cgroup, which the kernel may not kill, takes 300 MB. Prints one line of JSON.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from distill.config.recipe import load
from tests.faults import kill

MB = 2**20
HOG = """
import sys, time
open(sys.argv[1], "w").write("0")
open("/proc/self/oom_score_adj", "w").write("-1000")
memory = bytearray(300 * 2**20)
time.sleep(60)
"""


def controller() -> tuple[Path, str, str]:
    """The folder of the memory controller, and its files for the usage and the limit."""
    root = Path("/sys/fs/cgroup")
    if (root / "memory").is_dir():
        return root / "memory", "memory.usage_in_bytes", "memory.limit_in_bytes"
    return root, "memory.current", "memory.max"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="pocket", help='"pocket", or a pipeline with the same shapes')
    args = parser.parse_args()
    torch.set_num_threads(1)
    root, usage, limit = controller()
    group = root / f"fewstep-{os.getpid()}"
    group.mkdir()
    hog = None
    with tempfile.TemporaryDirectory() as temporary:
        try:
            common = [*kill.SETTINGS, f"output={temporary}", "train.steps=30", f"teacher.path={args.teacher}"]
            whole, killed = (load(kill.RECIPES / "dmd.yaml", [*common, f"name={n}"]) for n in ("whole", "killed"))
            child = kill.start(killed)
            (group / "cgroup.procs").write_text(str(child))
            while kill.logged(killed.folder) < 5:
                time.sleep(0.01)
            (group / limit).write_text(str(int((group / usage).read_text()) + 100 * MB))
            hog = subprocess.Popen([sys.executable, "-c", HOG, str(group / "cgroup.procs")])
            ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        finally:
            if hog:
                hog.kill()
                hog.wait()
            time.sleep(0.5)
            group.rmdir()
        at = kill.saved(killed.folder)
        for recipe in (killed, whole):
            kill.train_with_kills(recipe, 0, random.Random(0))
        identical = kill.same(whole.folder, killed.folder)
    by_kernel = ended == -signal.SIGKILL
    print(json.dumps({"killed by the kernel": by_kernel, "continued at step": at, "bitwise identical": identical}))
    sys.exit(int(not (by_kernel and identical)))


if __name__ == "__main__":
    main()
