"""Energy in joules, from NVIDIA's energy counter (Volta and later) or from RAPL (Intel and AMD processors).

The counters cover the whole GPU or all processor packages, including other processes. NVIDIA's counter is read through
`pynvml` if that is installed, RAPL through /sys/class/powercap, which only root can read on most systems.
"""

from pathlib import Path
from typing import Any

import torch

RAPL = Path("/sys/class/powercap")


class Energy:
    """Measures the energy that a `with` block uses.

    Attributes:
        joules: The energy, or None if no counter is available or a counter overflowed.
    """

    def __init__(self, device: torch.device, rapl: Path = RAPL) -> None:
        """
        Args:
            device: The device whose energy is measured.
            rapl: The folder of the RAPL counters.
        """
        self.device, self.rapl = device, rapl
        self.joules: float | None = None
        self._before: dict[str, float] = {}

    def __enter__(self) -> "Energy":
        self._before = counters(self.device, self.rapl)
        return self

    def __exit__(self, *error: object) -> None:
        after = counters(self.device, self.rapl)
        if self._before and after.keys() == self._before.keys():
            used = [after[name] - self._before[name] for name in after]
            if min(used) >= 0:  # RAPL counters overflow and restart at zero
                self.joules = sum(used)


def counters(device: torch.device, rapl: Path = RAPL) -> dict[str, float]:
    """The energy counters of `device` in joules, by name; empty if none can be read."""
    if device.type == "cuda":
        return _nvidia(device.index or 0)
    if device.type != "cpu":
        return {}
    out = {}
    for file in sorted(rapl.glob("*-rapl:?/energy_uj")):
        try:
            out[file.parent.name] = int(file.read_text(encoding="utf-8")) / 1e6
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
