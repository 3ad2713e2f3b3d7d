"""Checks that the components of a pipeline fit together: the prompt, one evaluation and the decoder on the meta device.

`fewstep describe`, training and evaluation call the same functions, so they refuse the same pipelines with the same
message, before any weights are read.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from teachers.core.teacher import Teacher
from teachers.loading.contents import WEIGHT_ENDINGS
from teachers.loading.embedded import embedded_size
from teachers.loading.inspection import check_folder, check_text_widths
from teachers.loading.load_errors import loading_errors
from teachers.loading.location import INDEX, config_source
from teachers.loading.record import RECORD
from teachers.loading.sizes import UnusableConfiguration, check_configs
from teachers.loading.sketch import add_text_encoders, sketch
from teachers.loading.source import check_trusted, check_weights
from teachers.support.checksums import Damaged, read_sealed_json
from teachers.support.contents import IGNORED, file_content
from teachers.support.json_files import read_json as read_config
from teachers.support.listing import visible
from teachers.support.text import printable

Stamp = tuple[str, str, str, tuple[tuple[str, int, int], ...]]
SMALL = {"height": 64, "width": 64, "frames": 9}  # a size that clips of every family can have
EVALUATED = "evaluated"  # how `check_fit_once` checks
_checked: set[Stamp] = set()  # folders that passed, with their files' times
_fitting: set[tuple[Any, ...]] = set()  # configurations whose components fit, by content


def check_teacher(path: str, family: type[Teacher], size: Mapping[str, float] | None = None) -> Teacher:
    """Check a teacher by its configuration and the headers of its weights.

    Args:
        path: A pipeline folder, a Hub id or a .safetensors file, as `Teacher.locate` returns it.
        family: Its family.
        size: Size of a sample, as `Teacher.load` takes it.

    Returns:
        The teacher with its networks on the meta device.

    Raises:
        ValueError: If a configuration cannot be used, or the components do not fit together.
    """
    source = config_source(path)
    with loading_errors(path):
        check_trusted(source, (family, *family.pipelines, *family.components))
    check_weights(path)
    check_folder(source)
    teacher = sketch(path, family, size)
    if Path(source).is_dir():
        check_fit(teacher, source)
    return teacher


def check_teacher_once(path: str, family: type[Teacher], size: Mapping[str, float] | None = None) -> None:
    """`check_teacher` for a local pipeline, unless the same files passed it in this process already."""
    _once(path, family, size, lambda: check_teacher(path, family, size))


def check_fit_once(path: str, family: type[Teacher]) -> None:
    """`check_fit` for a local pipeline of a family, which may also be a few-step student."""
    _once(path, family, EVALUATED, lambda: _check_pipeline(path, family))


def _check_pipeline(path: str, family: type[Teacher]) -> None:
    check_configs(Path(path))
    check_folder(path, pickles=True, quantized=True)
    check_text_widths(path, family.network, family.text_widths)
    size = stored_size(path, family)
    small = {key: SMALL[key] for key in family.size_keys if key in SMALL} if size is None else None
    try:
        teacher = sketch(path, family, size)
    except UnusableConfiguration:
        raise
    except ValueError:
        return
    try:
        check_fit(teacher, path)
    except ValueError:
        if not small or not _fits(path, family, small):  # a small model may not take the default size of the call
            raise


def _fits(path: str, family: type[Teacher], size: Mapping[str, float]) -> bool:
    try:
        check_fit(sketch(path, family, size), path)
    except ValueError:
        return False
    return True


def stored_size(path: str, family: type[Teacher]) -> dict[str, Any] | None:
    """The size of a pipeline's samples that its distill.json or an embedded teacher has; None for the default.

    Raises:
        ValueError: If the size in distill.json is invalid.
    """
    found: Any = embedded_size(path)
    if (Path(path) / RECORD).is_file():
        with suppress(Damaged):  # whoever reads the record reports it
            teacher = read_sealed_json(Path(path) / RECORD, required=False).get("teacher")
            found = teacher.get("size") if isinstance(teacher, dict) else None
    if not isinstance(found, dict):
        return None
    size = {key: found[key] for key in family.size_keys if key in found}
    try:
        family.size_argument(size)
    except ValueError as error:
        raise ValueError(f"{Path(path) / RECORD} has a wrong size ({error}); export the pipeline again") from error
    return size


def _once(path: str, family: type[Teacher], how: object, check: Callable[[], Any]) -> None:
    folder = Path(config_source(path))
    if not folder.is_dir():
        return
    times = tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in _files(folder))
    stamp = (repr(how), path, f"{family.__module__}.{family.__qualname__}", times)
    if stamp not in _checked:
        check()
        _checked.add(stamp)


def _files(folder: Path) -> list[Path]:
    return [file for file in visible(folder, "*", "*/*") if file.is_file()]


def _configuration(teacher: Teacher, folder: Path) -> tuple[Any, ...]:
    """What the result of `check_fit` depends on: classes, sizes, and files of components other than the scheduler."""
    skipped = (*WEIGHT_ENDINGS, *IGNORED)
    files = [file for file in _files(folder) if file.name not in (RECORD, INDEX) and not file.name.endswith(skipped)]
    contents = tuple(
        (str(file.relative_to(folder)), file_content(file)) for file in files if file.parent.name != "scheduler"
    )
    entries = read_config(folder / INDEX).items()
    index = tuple(repr(entry) for entry in sorted(entries) if entry[0] != "scheduler" and not entry[0].startswith("_"))
    return type(teacher), type(getattr(teacher, "stock", None)), index, teacher.shape, teacher.image_size, contents


@torch.no_grad()
def check_fit(teacher: Teacher, source: str) -> None:
    """Encode a prompt, evaluate the network once and decode, with shapes only.

    In one process this is computed once for equal configurations, such as those of the students of one teacher.

    Args:
        teacher: A teacher on the meta device, from `sketch`; its text encoders are added.
        source: The pipeline's folder.

    Raises:
        ValueError: With the step that failed and the reason.
    """
    network, cond = teacher.network, None
    configuration = _configuration(teacher, Path(source))
    with _step(source, "its text encoders cannot encode a prompt"):
        add_text_encoders(teacher, source)
        if configuration in _fitting:
            return
        cond = teacher.condition([teacher.example_prompt])
    meta = torch.device("meta")
    x = torch.empty(1, *teacher.shape, device=meta)
    t = torch.full((1,), (teacher.denoiser.path.t_min + teacher.denoiser.path.t_max) / 2, device=meta)
    size = " x ".join(map(str, teacher.shape))
    with _step(source, f"its pipeline does not take its default size, {size}"):
        _check_size(teacher)
    if cond is None:  # the meta device cannot compute it
        with _step(source, "its text encoders cannot encode a prompt"):
            cond = teacher.meta_condition()
    if cond is None:
        return
    with _step(source, f"its {network} cannot be evaluated at its default size, {size}"):
        velocity = teacher.denoiser.velocity(x, t, cond)
        if velocity.shape != x.shape:
            raise ValueError(f"it gives {tuple(velocity.shape[1:])}")
    with _step(source, f"its decoder cannot decode {size}"):
        decoded: Any = teacher.decode(x)
        if len(teacher.shape) == 3 and tuple(decoded.shape[-2:]) != tuple(teacher.image_size):
            raise ValueError(f"it gives {tuple(decoded.shape[1:])}, expected images of {tuple(teacher.image_size)}")
    _fitting.add(configuration)


def _check_size(teacher: Teacher) -> None:
    """Check the default image size with the pipeline's own `check_inputs`, if it has one."""
    check = getattr(getattr(teacher, "stock", None), "check_inputs", None)
    if check is None or not {"height", "width"} <= set(parameters := inspect.signature(check).parameters):
        return
    height, width = teacher.image_size
    known = {"prompt": "", "height": height, "width": width, "callback_steps": 1}
    required = [name for name, p in parameters.items() if p.default is p.empty]
    try:
        check(**{name: known.get(name) for name in dict.fromkeys([*required, "height", "width"])})
    except ValueError as error:
        if "height" in str(error):
            raise
    except Exception:
        return  # it has arguments that are unknown here


@contextmanager
def _step(source: str, problem: str) -> Iterator[None]:
    """A context that turns errors of networks into one sentence. What the meta device cannot compute passes."""
    try:
        yield
    except UnusableConfiguration:
        raise
    except NotImplementedError:  # by PyTorch, for operations without a kernel of the meta device
        return
    except Exception as error:  # networks raise many types for shapes that do not fit
        text = " ".join(printable(line.strip()) for line in str(error).splitlines())
        if re.search(r"\bmeta\b", text):  # values are needed, or a constant is on another device
            return
        reason = text[:300] or type(error).__name__
        raise ValueError(f"the components of {source} do not fit together: {problem} ({reason})") from error
