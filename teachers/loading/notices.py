"""Warnings and progress bars of diffusers and transformers that mean nothing to the user."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.utils import logging as diffusers_log
from transformers.utils import logging as transformers_log

NOTICES = {  # a part of the warning by the name of its logger
    "diffusers.pipelines.pipeline_loading_utils": "You have passed a non-standard module",
    "diffusers.schedulers.scheduling_lcm": "custom timestep schedule",
}


@contextmanager
def without_notices() -> Iterator[None]:
    """A context without diffusers' warnings about networks of a pipeline's own module and about custom timesteps.

    Stable Audio has such a network; exports choose such timesteps on purpose. The bars of reading and writing weights
    are left out too; those of downloads stay.
    """
    logs = [logging.getLogger(name) for name in NOTICES]
    for log in logs:
        log.addFilter(_is_no_notice)
    shown = diffusers_log.is_progress_bar_enabled()
    diffusers_log.disable_progress_bar()
    hook = transformers_log.set_tqdm_hook(_no_bar)
    try:
        yield
    finally:
        transformers_log.set_tqdm_hook(hook)
        if shown:
            diffusers_log.enable_progress_bar()
        for log in logs:
            log.removeFilter(_is_no_notice)


def _no_bar(factory: object, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return transformers_log.EmptyTqdm(*arguments, **options)


def _is_no_notice(record: logging.LogRecord) -> bool:
    return NOTICES[record.name] not in record.getMessage()
