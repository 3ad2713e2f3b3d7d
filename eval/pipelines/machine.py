"""Device, precision, and the description of the machine that figures were measured on."""

import os
import platform
from pathlib import Path

import diffusers
import psutil
import torch

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(name: str | None) -> torch.device:
    """The torch device `name`; None: a GPU if there is one. Raises ValueError if it is not available."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["no such device"])[0]
        raise ValueError(f'--device "{name}" is not available here ({reason}); try --device cpu') from error
    return device


def choose_precision(name: str | None, device: torch.device) -> str:
    """The precision `name`; None: float16 on a GPU, float32 on a CPU. Raises ValueError for an unknown name."""
    if name is None:
        return "float16" if device.type == "cuda" else "float32"
    if name not in PRECISIONS:
        raise ValueError(f'--precision must be one of {", ".join(PRECISIONS)}, got "{name}"')
    return name


def describe_machine(device: torch.device, precision: str) -> dict[str, str | int | float]:
    """Hardware and versions, for the report and for cache keys: equal for all comparisons on one machine."""
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


def load_average() -> float | None:
    """The system's load average over the last minute, this process included; None on Windows."""
    return round(os.getloadavg()[0], 2) if platform.system() != "Windows" else None


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(errors="replace", encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
