"""Checks of options."""

import argparse
import math


def check_counts(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a usage error unless every number of the options is above 0 and finite."""
    for name, value in vars(args).items():
        for number in value if isinstance(value, list) else [value]:
            option = f"--{name.replace('_', '-')}"
            if type(number) is int and number < 1:
                parser.error(f"{option} must be at least 1, got {number}")
            if isinstance(number, float) and not 0 < number < math.inf:
                parser.error(f"{option} must be above 0 and finite, got {number:g}")
