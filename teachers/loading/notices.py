"""Warnings and progress bars of diffusers and transformers that mean nothing to the user."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.utils import logging as diffusers_log
from transformers.utils import logging as transformers_log


@contextmanager
def without_notices() -> Iterator[None]:
    """A context without diffusers' warning about networks of a pipeline's own module, such as Stable Audio's.

    The bars of reading and writing weights are left out too; those of downloads stay.
    """
    log = logging.getLogger("diffusers.pipelines.pipeline_loading_utils")
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
        log.removeFilter(_is_no_notice)


def _no_bar(factory: object, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return transformers_log.EmptyTqdm(*arguments, **options)


def _is_no_notice(record: logging.LogRecord) -> bool:
    return "You have passed a non-standard module" not in record.getMessage()
