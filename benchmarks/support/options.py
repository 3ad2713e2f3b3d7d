"""Checks of options."""

import argparse


def check_counts(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a usage error unless every whole number of the options (steps, batches, samples) is at least 1."""
    for name, value in vars(args).items():
        for number in value if isinstance(value, list) else [value]:
            if type(number) is int and number < 1:
                parser.error(f"--{name.replace('_', '-')} must be at least 1, got {number}")
