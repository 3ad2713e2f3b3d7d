"""The error of an option with a value that cannot be used, which names the option."""

from collections.abc import Sequence
from typing import Any


class InvalidOption(ValueError):
    """An option with a value that cannot be used.

    Args:
        key: The option's name, or its dotted path from the recipe's top level.
        problem: The rest of the message, such as "must be at least 1, got 0".
        others: Other options of the same group, each for a "{}" in `problem`.
    """

    def __init__(self, key: str, problem: str, others: Sequence[str] = ()) -> None:
        super().__init__(f"{key} {problem.format(*others) if others else problem}")
        self.key, self.problem, self.others = key, problem, others

    def __reduce__(self) -> Any:
        return type(self), (self.key, self.problem, self.others)  # so that a process of a pool can raise it

    def within(self, path: str) -> "InvalidOption":
        """The error with the names that options have in the group `path`, "" at the top level."""
        return InvalidOption(join_key(path, self.key), self.problem, [join_key(path, name) for name in self.others])


def join_key(path: str, key: object) -> str:
    """The dotted name of a key in the group `path`, "" at the top level."""
    return f"{path}.{key}" if path else str(key)
