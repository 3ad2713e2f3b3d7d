"""Settings of all tests. Their fixtures are in `tests.fixtures`, which a process that only hands out tests skips."""

import gc
import os
import sys
import zlib
from pathlib import Path

import pytest

# As many threads as there are cores in each of several workers wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# matplotlib keeps its list of fonts in the user's home; without this, tests that set HOME find it among their files if
# they are the first of a process to draw.
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))
# Every worker and every process that a test starts would compile the project's modules again without bytecode files.
sys.dont_write_bytecode = False


# One of each kind: UNets, flow transformers with and without packed latents, classes, clips and sounds.
BASIC = (
    *("Stable Diffusion 1.5", "Stable Diffusion XL", "Stable Diffusion 3.5", "Flux.1 dev", "Z-Image", "DiT"),
    *("Wan 2.1", "CogVideoX 1.5", "Stable Audio, short"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures, with torch and diffusers, unless pytest-xdist's workers run the tests."""
    workers = config.getoption("dist", "no") != "no" and config.getoption("tx", None)
    if not workers or config.getoption("collectonly"):
        gc.disable()  # imports and collection make millions of objects, and little garbage
        config.pluginmanager.import_plugin("tests.fixtures")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cases that a plain run leaves out: see the markers in setup.cfg."""
    seen = set()
    for item in items:
        function, _, case = item.nodeid.partition("[")
        first = function not in seen
        seen.add(function)
        if not first and (
            item.get_closest_marker("first_by_default")
            or (item.get_closest_marker("sampled") and not _is_in_sample(function, case))
        ):
            item.add_marker("exhaustive")
        if item.get_closest_marker("exhaustive") or (item.get_closest_marker("first_is_quick") and not first):
            item.add_marker("slow")


def _is_in_sample(function: str, case: str) -> bool:
    """Whether a case stands for the others of a function: a basic architecture, or in this function's eighth of all."""
    return case.startswith(BASIC) or zlib.crc32(f"{function}[{case}".encode()) % 8 == 0


def pytest_collection_finish() -> None:
    """Garbage collections skip everything that was imported and collected."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two workers more than cores, because many slow tests wait for the processes that they start."""
    cores = os.cpu_count() or 1
    return cores if config.getoption("markexpr") == "not slow" else cores + 2
