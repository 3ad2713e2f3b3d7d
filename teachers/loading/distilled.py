"""Teachers that need few steps already. Distilling one again takes its few-step samples for those of many steps."""

from pathlib import Path

from diffusers import DiffusionPipeline

from teachers.loading.location import INDEX, config_source
from teachers.loading.record import RECORD

FEW_STEP_SCHEDULERS = ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler")


def distilled(path: str) -> str | None:
    """How the configuration of a pipeline shows that it was distilled; None if it does not.

    Args:
        path: A pipeline folder, a .safetensors file with its folder, or a Hub id.
    """
    source = config_source(path)
    if (Path(source) / RECORD).is_file():
        return f"it has a {RECORD}: it is a student of fewstep"
    if Path(source).exists() and not (Path(source) / INDEX).is_file():
        return None  # of a family whose pipelines have no index
    config = DiffusionPipeline.load_config(source)
    if config.get("is_distilled") is True:  # Krea 2 and Flux.2 klein
        return f"its {INDEX} has is_distilled"
    entry = config.get("scheduler")
    name = entry[1] if isinstance(entry, list) and len(entry) > 1 else None
    return f"its scheduler is {name}, which is for models of few steps" if name in FEW_STEP_SCHEDULERS else None
