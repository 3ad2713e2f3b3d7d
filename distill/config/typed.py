"""What options of recipes and methods are declared with; evaluation shares it (`teachers.support.options`)."""

from teachers.support.options import (
    Checked,
    InvalidOption,
    KeyDoc,
    build,
    check_fields,
    check_value,
    convert,
    document,
    option,
)

__all__ = [
    "Checked",
    "InvalidOption",
    "KeyDoc",
    "build",
    "check_fields",
    "check_value",
    "convert",
    "document",
    "option",
]
