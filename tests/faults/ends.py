"""A process that prints an error and ends with the exit code that it is given, as `distill.train` after an error."""

import sys


def main() -> None:
    """Print one sentence and end."""
    sys.stderr.write("error: a sentence\n")
    sys.exit(int(sys.argv[1]))


if __name__ == "__main__":
    main()
