"""Where and how long the stages of a maker train: options for a GPU and for a limited time."""

import argparse
import time
from dataclasses import dataclass, field, replace

import torch

from benchmarks.support.options import check_counts


@dataclass(frozen=True)
class Machine:
    """A device and the time on it.

    Attributes:
        device: The device that trains.
        graph: Whether a GPU replays each update as a CUDA graph, which saves the time of thousands of launches.
        end: The time, as of `time.monotonic()`, at which a training must have ended; None for no limit.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    graph: bool = True
    end: float | None = None

    @property
    def gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def share(self, part: float) -> "Machine":
        """The same machine for a part (0..1) of the time that is left."""
        now = time.monotonic()
        return self if self.end is None else replace(self, end=now + part * (self.end - now))

    def generator(self, seed: int) -> torch.Generator:
        """A generator of random numbers on the device."""
        return torch.Generator(self.device).manual_seed(seed)


CPU = Machine()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the machine."""
    parser.add_argument("--device", help='where to train, such as "cpu" or "cuda" (default: a GPU if there is one)')
    parser.add_argument(
        "--minutes",
        type=float,
        help="of the whole command: the learning rates decay in time, also if the numbers of steps are not reached",
    )
    parser.add_argument("--no-graph", action="store_true", help="launch each operation on a GPU one by one")


def chosen(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Machine:
    """The machine of the options; sets one thread for a CPU and TensorFloat-32 for a GPU. All options are checked."""
    check_counts(parser, args)
    available = torch.cuda.is_available()
    try:
        device = torch.device(args.device or ("cuda" if available else "cpu"))
    except RuntimeError:
        parser.error(f'--device must be "cpu" or a CUDA device, got "{args.device}"')
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not available):
        possible = "cpu or a CUDA device" if available else "cpu, because there is no CUDA device"
        parser.error(f'--device must be {possible}, got "{device}"')
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        parser.error(f'--device must be one of {torch.cuda.device_count()} CUDA devices, got "{device}"')
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    else:
        torch.set_num_threads(1)
    end = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    return Machine(device, not args.no_graph, end)
