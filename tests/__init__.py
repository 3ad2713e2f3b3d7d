"""Makes `python -m tests.faults...` mean this project's tests, whatever package of that name is installed."""
