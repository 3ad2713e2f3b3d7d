"""Sizes of clips and sounds from the command line."""

from collections.abc import Sequence


def parse_sizes(values: Sequence[str]) -> dict[str, float]:
    """The sizes in strings such as "frames=9", for `Teacher.load`.

    Raises:
        ValueError: If a string is not a key and a number.
    """
    sizes = {}
    for value in values:
        key, _, number = value.partition("=")
        try:
            sizes[key.strip()] = float(number)
        except ValueError as error:
            raise ValueError(f"--size must be a key and a number, such as frames=9, got {value!r}") from error
    return sizes
