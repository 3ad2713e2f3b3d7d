"""What options of recipes and methods are declared with; evaluation shares it (`teachers.support.options`)."""

from teachers.support.invalid_option import InvalidOption
from teachers.support.option_docs import KeyDoc, document
from teachers.support.options import (
    Checked,
    build,
    check_fields,
    check_value,
    convert,
    default_of,
    option,
    redefined,
)

__all__ = [
    "Checked",
    "InvalidOption",
    "KeyDoc",
    "build",
    "check_fields",
    "check_value",
    "convert",
    "default_of",
    "document",
    "option",
    "redefined",
]
