"""Print the memory plan of a recipe before anything is allocated.

fewstep memory sdxl_dmd2_lora [key=value ...]
"""

import torch

from distill.config.recipe import Recipe
from distill.training.memory_plan import plan_lines
from distill.training.setup import check_fine_tunes
from teachers.support.errors import reading


def print_memory(recipe: Recipe) -> None:
    """Print the memory plans of both tiers for one process, and whether each fits into the free memory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_fine_tunes(recipe)
    with reading(recipe.teacher.path):
        lines = plan_lines(recipe, recipe.train.batch_size // recipe.train.accumulation, device)
    print("\n".join(lines))


if __name__ == "__main__":
    from distill.cli import main

    main("memory")
