"""What the figures were measured on."""

import os
import platform
from pathlib import Path

import diffusers
import psutil
import torch

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(name: str | None) -> torch.device:
    """The device called `name`; None takes a GPU where there is one. Raises ValueError for one that is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["no such device"])[0]
        raise ValueError(f'the device "{name}" cannot be used here ({reason}); try --device cpu') from error
    return device


def choose_precision(name: str | None, device: torch.device) -> str:
    """`name`, or what people run on this device: float16 on a GPU, float32 on a CPU. Raises ValueError for others."""
    if name is None:
        return "float16" if device.type == "cuda" else "float32"
    if name not in PRECISIONS:
        raise ValueError(f'there is no precision "{name}"; choose one of {", ".join(PRECISIONS)}')
    return name


def describe(device: torch.device, precision: str) -> dict[str, str | int | float]:
    """The machine, for the report and for the cache's keys: the same on each run of one machine."""
    out: dict[str, str | int | float] = {
        "device": device.type,
        "cpu": _cpu(),
        "cores": psutil.cpu_count(logical=True) or 1,
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "precision": precision,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    if device.type == "cuda":
        out["gpu"] = torch.cuda.get_device_name(device)
    return out


def load() -> float | None:
    """How many processes wanted a core over the last minute, this one included; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if platform.system() != "Windows" else None


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
