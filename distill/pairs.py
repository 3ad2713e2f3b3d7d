"""Make a recipe's teacher pairs before training, on any number of processes.

    fewstep pairs RECIPE [key=value ...]
    accelerate launch -m distill.pairs RECIPE [key=value ...]

Training makes missing pairs itself; this command makes the same pairs. Run it again to continue after an interruption.
"""

from contextlib import nullcontext

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from distill.config.recipe import Recipe, method_options
from distill.data import dataset as data
from distill.data import shards, teacher_pairs
from distill.methods.contract import requested_pairs
from distill.training.engine import COLLECTIVE_TIMEOUT
from distill.training.environment import without_accelerate_variables
from distill.training.run_folder import lock_run_folder, stored_contents
from distill.training.setup import load_teacher, plan_data
from distill.training.watchdog import watched
from teachers.support.text import counted


@watched()
def make_pairs(recipe: Recipe) -> None:
    """Make the teacher pairs that `recipe` needs and that are not in its cache.

    Raises:
        ValueError: If the recipe's method uses no teacher pairs.
    """
    count, steps = requested_pairs(*method_options(recipe))
    if not count:
        raise ValueError(
            f"the method of {recipe.name} uses no teacher pairs with these options (DMD uses them if "
            "method.regression_weight is above 0)"
        )
    plan = plan_data(recipe)
    timeout = InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)  # some processes make one shard more than others
    with without_accelerate_variables():
        accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no", kwargs_handlers=[timeout])
    with lock_run_folder(recipe.folder) if accelerator.is_main_process else nullcontext():
        teacher = load_teacher(recipe, accelerator.device)
        dataset = data.prepare(plan, teacher, recipe, accelerator, stored_contents(recipe))
        pairs = teacher_pairs.attach(dataset, recipe, teacher, (count, steps), accelerator).pairs
        assert pairs is not None
        files = -(-len(pairs) // shards.SHARD)
        accelerator.print(f"{counted(len(pairs), 'pair')} in {counted(files, 'shard')} in {recipe.folder / 'cache'}")


if __name__ == "__main__":
    from distill.cli import main

    main("pairs")
