"""What drawing took in joules, where the driver keeps a counter: NVIDIA's (Volta and later) or Intel and AMD's RAPL.

The counters are of the whole GPU or of the processor packages, whoever uses them. NVIDIA's is read through `pynvml`
where that is installed, RAPL through /sys/class/powercap, which most systems let only root read.
"""

from pathlib import Path
from typing import Any

import torch

RAPL = Path("/sys/class/powercap")


class Energy:
    """The energy used inside a `with` block, afterwards in `.joules`; None where nothing reports it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.joules: float | None = None
        self._before: dict[str, float] = {}

    def __enter__(self) -> "Energy":
        self._before = counters(self.device)
        return self

    def __exit__(self, *error: object) -> None:
        after = counters(self.device)
        if self._before and after.keys() == self._before.keys():
            used = [after[name] - self._before[name] for name in after]
            if min(used) >= 0:  # RAPL's counters start again when they are full
                self.joules = sum(used)


def counters(device: torch.device) -> dict[str, float]:
    """The counters that concern `device`, in joules; empty where none can be read."""
    if device.type == "cuda":
        return _nvidia(device.index or 0)
    if device.type != "cpu":
        return {}
    out = {}
    for file in sorted(RAPL.glob("*-rapl:?/energy_uj")):
        try:
            out[file.parent.name] = int(file.read_text()) / 1e6
        except (OSError, ValueError):
            return {}
    return out


def _nvidia(index: int) -> dict[str, float]:
    try:
        import pynvml
    except ImportError:
        return {}
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        return {uuid: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3}
    except nvml.NVMLError:
        return {}
