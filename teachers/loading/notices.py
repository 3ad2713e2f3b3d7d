"""Warnings of diffusers that mean nothing to the user."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_notices() -> Iterator[None]:
    """A context without diffusers' warning about networks of a pipeline's own module, such as Stable Audio's."""
    log = logging.getLogger("diffusers.pipelines.pipeline_loading_utils")
    log.addFilter(_is_no_notice)
    try:
        yield
    finally:
        log.removeFilter(_is_no_notice)


def _is_no_notice(record: logging.LogRecord) -> bool:
    return "You have passed a non-standard module" not in record.getMessage()
