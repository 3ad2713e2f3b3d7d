"""YAML files as OmegaConf reads them, without the octal and base-60 numbers of YAML 1.1."""

import io
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from teachers.support.text import printable, read_text


def read_yaml(file: Path) -> Any:
    """The values in a UTF-8 YAML file.

    Raises:
        ValueError: If it is not YAML, or has a number that `parse_value` refuses; the message names the file.
    """
    text = read_text(file)
    try:
        values = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
        _check_numbers(text)
        return values
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError, OSError, ValueError) as error:
        raise ValueError(f"{file} is not valid YAML: {_sentence(error)}") from error


def parse_value(text: str) -> Any:
    """One YAML value.

    Raises:
        ValueError: If it is not YAML, or a number with leading zeros or colons: YAML 1.1 reads 010 as 8 and 1:30 as 90.
    """
    try:
        values: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
        _check_numbers(text)
        return values["value"]
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError, ValueError) as error:
        raise ValueError(_sentence(error)) from error


def _check_numbers(text: str) -> None:
    nodes, seen = [yaml.compose(text, Loader=yaml.SafeLoader)], set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            nodes += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.ScalarNode) and node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
            digits = node.value.lstrip("+-").replace("_", "")
            if ":" in digits or (digits[:1] == "0" and digits.isdecimal() and digits.strip("0")):
                base, parts = (60, "colons") if ":" in digits else (8, "leading zeros")
                raise ValueError(
                    f"line {node.start_mark.line + 1}: YAML reads {node.value} as a number in base {base}; "
                    f"write it without {parts}, or in quotes as text"
                )


def _sentence(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return " ".join(printable(line.strip()) for line in str(error).splitlines())
