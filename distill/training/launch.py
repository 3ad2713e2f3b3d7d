"""Start a command in several processes through accelerate's launcher."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path


def launch(module: str, arguments: Sequence[str], config: Path | None, processes: int | None) -> int:
    """Run `python -m module arguments` under accelerate's launcher and wait for it.

    Args:
        module: The module to run in every process.
        arguments: Its command line.
        config: accelerate's configuration file; None: its default configuration.
        processes: Number of processes; None: the number in the configuration.

    Returns:
        The exit code: 0; 2 if a process ended with a user error; 130 after a signal; else 1.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ["PYTHONSAFEPATH"] = "1"  # files in the working directory must not shadow packages
    options = ["--config_file", str(config)] if config else []
    options += ["--num_processes", str(processes)] if processes else []
    parsed = launch_command_parser().parse_args([*options, "--quiet", "--module", module, *arguments])
    try:
        launch_command(parsed)
    except ChildFailedError as error:  # the failed process has printed its error
        return 2 if any(failure.exitcode == 2 for failure in error.failures.values()) else 1
    except SignalException as error:
        print(f"stopped by {error.sigval.name}; run the same command again to continue", file=sys.stderr)
        return 130
    except SystemExit as error:  # with --quiet a single failed process ends this way; it has printed its error
        return 2 if error.code else 0
    return 0
