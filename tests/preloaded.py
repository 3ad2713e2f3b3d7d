"""What the server of `tests.forks` imports before the first fork: everything that commands and fixtures need."""

import gc
from importlib import import_module

gc.disable()  # imports make millions of objects, and little garbage
for name in ("tests.fixtures", "distill.train", "eval.compare", "tests.commands"):
    import_module(name)
gc.freeze()
gc.enable()
