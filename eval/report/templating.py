"""Jinja environment of the report's templates. Every string is escaped."""

from typing import Any

import jinja2

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("eval.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: Any) -> str:
    """Render a file of `templates/` with plain values."""
    return _ENVIRONMENT.get_template(template).render(values)


def source(template: str) -> str:
    """The text of a file of `templates/`."""
    loader = _ENVIRONMENT.loader
    assert loader is not None, "the environment has a loader"
    return loader.get_source(_ENVIRONMENT, template)[0]
