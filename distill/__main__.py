"""`python -m distill` is the same as the console script `fewstep`."""

from distill.cli import main

if __name__ == "__main__":
    main()
