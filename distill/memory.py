"""Print the memory plan of a recipe before anything is allocated.

fewstep memory sdxl_dmd2_lora [key=value ...] [--config fsdp2 --num-processes 8]
"""

from pathlib import Path

import torch
from accelerate.utils import FullyShardedDataParallelPlugin

from distill.config.recipe import Recipe
from distill.training.memory_plan import Processes, plan_lines
from distill.training.setup import check_fine_tunes
from teachers.support.errors import reading
from teachers.support.text import printable
from teachers.support.yaml_files import read_yaml


def print_memory(recipe: Recipe, config: Path | None = None, count: int | None = None) -> None:
    """Print the memory plans of both tiers, and whether each fits into the free memory of one device.

    Args:
        recipe: A checked recipe.
        config: accelerate's configuration file; None: DDP.
        count: Number of processes; None: the number in the configuration, or one.

    Raises:
        ValueError: If `config` cannot be read.
    """
    processes = read_processes(config, count)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_fine_tunes(recipe)
    with reading(recipe.teacher.path):
        lines = plan_lines(recipe, processes.samples(recipe), device, processes)
    print("\n".join(lines))


def read_processes(config: Path | None, count: int | None) -> Processes:
    """The number of processes in accelerate's configuration file, or `count`, and FSDP2's options in it.

    Raises:
        ValueError: If `config` cannot be read.
    """
    if config is None:
        return Processes(count or 1)
    with reading(config):
        values = read_yaml(config)
        if not isinstance(values, dict):
            raise ValueError(f"{printable(config)} must have accelerate's keys, got {type(values).__name__}")
        number = count or int(values.get("num_processes", 1))
        if number < 1:
            raise ValueError(f"num_processes of {printable(config)} must be at least 1, got {number}")
        if values.get("distributed_type") != "FSDP":
            return Processes(number)
        names = (values.get("fsdp_config") or {}).get("fsdp_transformer_layer_cls_to_wrap")
        blocks = names.split(",") if isinstance(names, str) else names
        options = FullyShardedDataParallelPlugin(fsdp_version=2, transformer_cls_names_to_wrap=blocks)
        return Processes(number, options)


if __name__ == "__main__":
    from distill.cli import main

    main("memory")
