"""Fuzz of everything that a stranger can hand to a command: pipelines, run folders, data, references.

    python -m tests.faults.fuzz models|runs|data|references [--count 2000] [--first 0] [--seed 0] [--work FOLDER]

Case number i of a seed is always the same: a copy of valid inputs with one to three random changes (`mutations`), and
one command that reads them (`fuzz_inputs`). Every case runs in a fork of this process with limits of time, memory and
file size. Results are appended to FOLDER/KIND-SEED.jsonl; the same command continues after an interruption. Prints how
the cases ended. Exit code 1 if there was a problem:

    traceback   a traceback was printed
    unexpected  the command called its end a bug
    hang        it computed for more than 20 seconds, or took more than 60, as on a machine that does other work too
    crash       the process was killed by a signal
    outside     a file outside of the folders that the command may write was changed
    code        injected code ran
    silent      it failed without a message, or with several
    noise       it printed more than 30 lines or 10,000 characters
"""

import argparse
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from teachers.describe import describe
from teachers.support import keys
from tests.faults import fuzz_inputs
from tests.faults.mutations import damage

LIMIT, WAIT = 20, 3  # processor seconds of one case; times as many in all, because the machine may be busy
HANG, MEMORY, FILE_SIZE = 97, 6 * 2**30, 2**28
HUGE = 2**26  # bytes of a file that takes long to read
MAX_LINES, MAX_CHARACTERS = 30, 10_000
CHOICES = {"models": 1, "runs": 2, "data": 3, "references": 2}  # of the inputs of a command, that are tried undamaged
ALLOWED = ("out", "tmp")  # folders of a case that every command may write


def make_inputs(
    work: Path, kinds: tuple[str, ...] = fuzz_inputs.KINDS, models: tuple[str, ...] = fuzz_inputs.MODELS
) -> None:
    """Make the undamaged inputs in `work`/inputs, once."""
    done = work / "inputs" / "done"
    if done.is_file():
        return
    shutil.rmtree(work / "inputs", ignore_errors=True)
    (work / "inputs").mkdir(parents=True)
    child = os.fork()  # this process must not train: autograd's threads do not survive a fork
    if child:
        if os.waitpid(child, 0)[1]:
            raise RuntimeError("the undamaged inputs could not be made")
        return
    code = 1
    try:
        _make_inputs(work / "inputs", kinds, models)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _make_inputs(inputs: Path, kinds: tuple[str, ...], models: tuple[str, ...]) -> None:
    fuzz_inputs.make_models(inputs / "models", models)
    if "references" in kinds or "models" in kinds:
        (inputs / "references").mkdir()
        fuzz_inputs.make_references(inputs / "references")
        shutil.copy(inputs / "references" / "reference.npz", inputs / "models" / "reference.npz")
    if "data" in kinds:
        fuzz_inputs.make_data(inputs / "data")
    if "runs" in kinds:
        fuzz_inputs.make_runs(inputs / "runs", inputs / "models" / "Stable_Diffusion_1.5")
    (inputs / "done").touch()


def import_everything(work: Path) -> None:
    """Import what commands import lazily, and read the project's code once, so that the forks need not."""
    for name in ("gradio", "datasets", "pyarrow.parquet", "bs4", "ftfy", "matplotlib.font_manager"):
        with suppress(ImportError):
            import_module(name)
    for model in sorted((work / "inputs" / "models").glob("*/")):
        describe(str(model))
    keys.code(
        "distill.train", "distill.export", "distill.data.encoding", "eval.compare", "eval.features.media_extractors"
    )


def teacher(work: Path) -> Path:
    """The undamaged pipeline."""
    return work / "inputs" / "models" / "Stable_Diffusion_1.5"


def run_case(
    kind: str, seed: int, index: int, work: Path, keep: bool = False, pipes: bool = True
) -> dict[str, object] | None:
    """Run one case; returns its record, with "problem" if there was one.

    Without `pipes` the result is None for a case with a named pipe or a huge file, which is not run.
    """
    rng = random.Random(f"{kind}/{seed}/{index}")
    base = work / "inputs" / kind
    if kind == "models":
        base = rng.choice(sorted(path for path in base.iterdir() if path.is_dir()))
    case = _make_case(work, base)
    done = damage(rng, case / "in", case / "canary")
    if not pipes and any(path.is_fifo() or path.lstat().st_size > HUGE for path in (case / "in").rglob("*")):
        return None
    choices = fuzz_inputs.COMMANDS[kind]
    command = rng.choices(list(choices), list(choices.values()))[0]
    name = command.__name__
    writable = [case / folder for folder in (*ALLOWED, "home/.cache")]  # fewstep's own cache of hashes
    if kind == "runs":
        writable += [case / "in" / folder for folder in ("run", ".cache")]
    before, start = snapshot(case, writable), time.monotonic()
    status = fork(case, lambda: command(fuzz_inputs.Case(case, teacher(work), rng)))
    seconds = time.monotonic() - start
    text = _output(case)
    problem = judge(status, name, text, (case / "canary").exists(), before, snapshot(case, writable))
    record: dict[str, object] = {"index": index, "command": name, "base": base.name, "changes": done, "status": status}
    record["seconds"] = round(seconds, 2)
    record["message"] = next(iter(re.findall(r"^(?:unexpected )?error: .*", text, re.MULTILINE)), "")[:300]
    if problem:
        record |= {"problem": problem, "output": text[-3000:]}
    if not keep:
        shutil.rmtree(case, ignore_errors=True)
    return record


class _Nth(random.Random):
    """Always the choice with the same number, so that all choices of a command can be tried."""

    number = 0

    def choice(self, seq: Any) -> Any:
        return seq[self.number % len(seq)]


def check_undamaged(kind: str, work: Path) -> None:
    """Check that every command of a kind succeeds with its undamaged inputs: damage would test nothing otherwise.

    Raises:
        RuntimeError: With the command and its output.
    """
    base = work / "inputs" / kind
    for number, command in itertools.product(range(CHOICES[kind]), fuzz_inputs.COMMANDS[kind]):
        for inputs in sorted(path for path in base.iterdir() if path.is_dir()) if kind == "models" else [base]:
            case = _make_case(work, inputs)
            rng = _Nth()
            rng.number = number
            status = fork(case, lambda: command(fuzz_inputs.Case(case, teacher(work), rng)))  # noqa: B023
            if status != 0:
                raise RuntimeError(f"{command.__name__} of {inputs.name} ends with {status}: {_output(case)[-2000:]}")


def _make_case(work: Path, inputs: Path) -> Path:
    case = work / "case"
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(inputs, case / "in", symlinks=True)
    for name in (*ALLOWED, "home/.cache", "cwd"):
        (case / name).mkdir(parents=True)
    return case


def _output(case: Path) -> str:
    return "".join((case / "tmp" / stream).read_text(errors="replace") for stream in ("stdout", "stderr"))


def judge(
    status: int, name: str, text: str, code: bool, before: dict[str, tuple], after: dict[str, tuple]
) -> str | None:
    """The problem of a case, if there is one."""
    errors = re.findall(r"^(?:unexpected )?error: ", text, re.MULTILINE)
    if code:
        return "code"
    if status == HANG:
        return "hang"
    if status < 0:
        return f"crash ({signal.Signals(-status).name})"
    if "Traceback (most recent call last)" in text:
        return "traceback"
    if "unexpected error: " in text:
        return "unexpected"
    if before != after:
        changed = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
        return f"outside ({', '.join(changed[:3])})"
    if status not in (0, 2, 3) and not (name.startswith("check") and status == 1):
        return f"unexpected (exit code {status})"
    if (status in (2, 3) and len(errors) != 1) or (status == 0 and errors):
        return f"silent ({len(errors)} messages)"
    lines = [part for line in text.splitlines() for part in line.split("\r")[-1:] if part.strip()]
    if status == 2 and name != "dry_run" and (len(lines) > MAX_LINES or len(text) > MAX_CHARACTERS):
        return f"noise ({len(lines)} lines, {len(text)} characters)"
    return None


def fork(case: Path, command: Callable[[], int]) -> int:
    """Run `command` in a child process with limits; returns its exit code, or minus the number of a signal."""
    child = os.fork()
    if not child:
        try:
            _limit(case)
            os._exit(command())
        except SystemExit as error:
            os._exit(error.code if isinstance(error.code, int) else 3 if error.code else 0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    deadline = time.monotonic() + WAIT * LIMIT + 10  # a hang inside of a library does not see the alarm
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return HANG


def _limit(case: Path) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        handle = os.open(case / "tmp" / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)  # noqa: SIM115
    os.chdir(case / "cwd")
    os.environ |= {"HOME": str(case / "home"), "TMPDIR": str(case / "tmp"), "HF_HUB_OFFLINE": "1"}
    tempfile.tempdir = None
    tqdm.set_lock(threading.RLock())  # the default lock is shared by processes, and a killed one may hold it
    resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def end(*_: object) -> None:
        os._exit(HANG)

    for number, timer, seconds in (
        (signal.SIGALRM, signal.ITIMER_REAL, WAIT * LIMIT),
        (signal.SIGPROF, signal.ITIMER_PROF, LIMIT),
    ):
        signal.signal(number, end)
        signal.setitimer(timer, seconds)


def _data_bytes() -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"VmData:\s+(\d+)", text)[1]) * 1024


def snapshot(case: Path, writable: list[Path]) -> dict[str, tuple]:
    """Kind, size and time of every file of a case outside of the folders that may change."""
    found: dict[str, tuple] = {}
    for folder, folders, files in os.walk(case):
        folders[:] = [name for name in folders if Path(folder, name) not in writable]
        for path in (Path(folder, name) for name in (*folders, *files)):
            if path in writable:
                continue
            state = path.lstat()
            changed = (state.st_mode, state.st_size, state.st_mtime_ns) if not path.is_dir() else (state.st_mode,)
            found[str(path.relative_to(case))] = changed
    return found


def done_before(results: Path) -> dict[int, dict]:
    """The records of an earlier call."""
    lines = results.read_text().splitlines() if results.is_file() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return {record["index"]: record for record in records}


def fuzz(
    kind: str, seed: int, indices: Iterable[int], work: Path, seconds: float = 1e9, pipes: bool = True
) -> list[dict[str, object]]:
    """Run the cases that have no result yet, for at most about `seconds`; returns all records."""
    torch.set_num_threads(1)
    make_inputs(work)
    import_everything(work)
    passed = work / f"undamaged-{kind}"
    if not passed.is_file():
        check_undamaged(kind, work)
        passed.touch()
    results = work / f"{kind}-{seed}.jsonl"
    records, start = done_before(results), time.monotonic()
    for index in indices:
        if index in records or time.monotonic() - start > seconds:
            continue
        record = run_case(kind, seed, index, work, pipes=pipes)
        if record is None:
            continue
        records[index] = record
        with results.open("a") as file:
            file.write(json.dumps(records[index]) + "\n")
    return [records[index] for index in sorted(records)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=fuzz_inputs.KINDS)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the first case, if others were run elsewhere")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "fewstep-fuzz")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after this time; the same command continues")
    parser.add_argument(
        "--no-pipes", action="store_true", help="leave cases with named pipes or huge files for a later call"
    )
    parser.add_argument("--only", type=int, nargs="+", help="run these cases again, and keep the last one's folder")
    args = parser.parse_args()
    args.work = args.work.resolve()
    if args.only:
        torch.set_num_threads(1)
        make_inputs(args.work)
        for index in args.only:
            print(json.dumps(run_case(args.kind, args.seed, index, args.work, keep=True), indent=2))
        return
    records = fuzz(
        args.kind, args.seed, range(args.first, args.first + args.count), args.work, args.seconds, not args.no_pipes
    )
    print(f"{args.kind}, seed {args.seed}: {len(records)} cases")
    for status, number in sorted(Counter(str(record["status"]) for record in records).items()):
        print(f"  exit code {status}: {number}")
    problems = [record for record in records if "problem" in record]
    for problem, number in Counter(str(record["problem"]).partition(" ")[0] for record in problems).most_common():
        indices = [record["index"] for record in problems if str(record["problem"]).startswith(problem)]
        print(f"  {problem}: {number} (cases {', '.join(map(str, indices[:10]))})")
    sys.exit(int(bool(problems) or len(records) < args.count))


if __name__ == "__main__":
    main()
