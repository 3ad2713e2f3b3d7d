"""One of two processes that end with an exit code, as `distill.train` after an error: only the first one prints it."""

import os
import sys
import time


def main() -> None:
    """Print one sentence and end."""
    if os.environ["RANK"] != "0":
        time.sleep(10)  # the launcher ends all processes with the first
    sys.stderr.write(f"error: this is one of {os.environ['WORLD_SIZE']} processes\n")
    sys.exit(int(sys.argv[1]))


if __name__ == "__main__":
    main()
