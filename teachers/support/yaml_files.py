"""YAML files as OmegaConf reads them, without the octal and base-60 numbers of YAML 1.1."""

import io
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from teachers.support.limits import RECIPE_BYTES
from teachers.support.text import printable, read_text

MAX_VALUES = 100_000  # of a file, after its aliases are replaced by what they stand for
LARGEST_INT = 2**64


def read_yaml(file: Path) -> Any:
    """The values in a UTF-8 YAML file.

    Raises:
        ValueError: If it is too large, is not YAML, or has what `parse_value` refuses; the message names the file.
    """
    text = read_text(file, RECIPE_BYTES)
    try:
        _check_nodes(text)
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError, OSError, ValueError) as error:
        raise ValueError(f"{file} is not valid YAML: {_sentence(error)}") from error


def parse_value(text: str) -> Any:
    """One YAML value.

    Raises:
        ValueError: If it is not YAML, has more than `MAX_VALUES` values, a number of more than 64 bits, or with leading
            zeros or colons: YAML 1.1 reads 010 as 8 and 1:30 as 90.
    """
    try:
        _check_nodes(text)
        values: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
        return values["value"]
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError, ValueError) as error:
        raise ValueError(_sentence(error)) from error


def _check_nodes(text: str) -> None:
    """Check the nodes of a YAML text before aliases are replaced, which can take exponential memory."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    nodes, seen = [root], set()
    while nodes:
        node = nodes.pop()
        if id(node) not in seen:  # otherwise an alias
            seen.add(id(node))
            nodes += _children(node)
            _check_number(node)
    if root is not None and _expanded_size(root, {}) > MAX_VALUES:
        raise ValueError(f"it must have at most {MAX_VALUES:,} values, with its aliases replaced, but has more")


def _children(node: yaml.Node | None) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """The number of values in `node`, each alias counted as what it stands for."""
    found = sizes.get(id(node))
    if found == 0:
        raise ValueError(f"line {node.start_mark.line + 1}: an alias is inside the value that it stands for")
    if found is None:
        sizes[id(node)] = 0  # not finished
        sizes[id(node)] = found = 1 + sum(_expanded_size(part, sizes) for part in _children(node))
    return found


def _check_number(node: yaml.Node | None) -> None:
    if not isinstance(node, yaml.ScalarNode) or node.tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
        return
    where, digits = f"line {node.start_mark.line + 1}", node.value.lstrip("+-").replace("_", "")
    if ":" in digits or (digits[:1] == "0" and digits.isdecimal() and digits.strip("0")):
        base, parts = (60, "colons") if ":" in digits else (8, "leading zeros")
        raise ValueError(
            f"{where}: YAML reads {node.value} as a number in base {base}; "
            f"write it without {parts}, or in quotes as text"
        )
    if node.tag.endswith("int") and (len(digits) > 100 or int(digits, 0) > LARGEST_INT):
        raise ValueError(f"{where}: a whole number must have at most 64 bits, got {len(digits)} digits")


def _sentence(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return " ".join(printable(line.strip()) for line in str(error).splitlines())
