"""Start a command in several processes through accelerate's launcher."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import CalledProcessError

import torch

from distill.config.shipped import accelerate_file
from teachers.support.errors import EXIT_ERROR, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_SIGNAL, EXIT_TERMINATED

# In the environment of the processes that `launch` starts.
LAUNCHED = "FEWSTEP_LAUNCHED"
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")  # variables that torchrun and accelerate always set
KNOWN = (EXIT_FAILED, EXIT_ERROR, EXIT_INTERRUPTED, EXIT_TERMINATED)  # of a process that has printed why it ended


def exit_code(number: int, is_main: bool) -> int:
    """The exit code of a process whose run was stopped by a signal and has saved.

    It is 128 plus the signal's number. torchrun and accelerate's launcher would print a traceback, and torchrun would
    end the other processes, so their processes have 0, except the main one under `launch`, which understands the code.

    Args:
        number: The signal's number.
        is_main: Whether this is the run's main process.
    """
    if any(name in os.environ for name in LAUNCHERS) and not (is_main and LAUNCHED in os.environ):
        return 0
    return EXIT_SIGNAL + number


def launch(module: str, arguments: Sequence[str], config: Path | None, processes: int | None) -> int:
    """Run `python -m module arguments` under accelerate's launcher and wait for it.

    Args:
        module: The module to run in every process.
        arguments: Its command line.
        config: accelerate's configuration file; None: the user's default configuration or, for several processes
            without one, the shipped one for the GPUs or the CPU of this machine.
        processes: Number of processes; None: the number in the configuration.

    Returns:
        The exit code: 0; 2 if a process ended with a user error; 3 if training went wrong; 130 after SIGINT, 143 after
        SIGTERM; else 1.
    """
    from accelerate.commands.config.config_args import default_config_file
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # failures are reported below
    os.environ[LAUNCHED] = "1"
    os.environ["PYTHONSAFEPATH"] = "1"  # nothing in the working directory shadows this package in the child processes
    if config is None and processes is not None and processes > 1 and not Path(default_config_file).is_file():
        # accelerate itself would start one process on a CPU
        config = accelerate_file("ddp" if torch.cuda.is_available() else "two_cpu")
    words = ["--config_file", str(config)] if config else []
    words += ["--num_processes", str(processes)] if processes else []
    parsed = launch_command_parser().parse_args([*words, "--module", module, *arguments])
    try:
        launch_command(parsed)
    except ChildFailedError as error:
        failures = error.failures.values()
        for code in KNOWN:
            if any(failure.exitcode == code for failure in failures):
                return code
        for failure in failures:
            if str(failure.message).startswith(("error: ", "unexpected error: ")):
                continue  # likewise
            ended = f"by {failure.signal_name()}" if failure.exitcode < 0 else f"with exit code {failure.exitcode}"
            print(f"error: process {failure.local_rank} ended {ended}; see its output above", file=sys.stderr)
        return 1
    except SignalException as error:
        print(f"stopped by {error.sigval.name}; run the same command again to continue", file=sys.stderr)
        return EXIT_SIGNAL + error.sigval.value
    except CalledProcessError as error:  # a single process, which has printed why it failed
        return error.returncode if error.returncode in KNOWN else 1
    return 0
