"""Which of diffusers' pipelines the installed families take."""

from teachers.loading.registry import installed

TASKS = {  # of diffusers' automatic pipelines, which the table below is read from
    "text to image": "AUTO_TEXT2IMAGE_PIPELINES_MAPPING",
    "text to video": "AUTO_TEXT2VIDEO_PIPELINES_MAPPING",
    "text to audio": "AUTO_TEXT2AUDIO_PIPELINES_MAPPING",
}


def coverage() -> dict[str, dict[str, bool]]:
    """For each task the pipelines that diffusers chooses from automatically, and whether a family takes them.

    Returns:
        For each task, sorted class names of pipelines with True if an installed family takes them.
    """
    from diffusers.pipelines import auto_pipeline

    taken = {pipeline.__name__ for family in installed().values() for pipeline in family.pipelines}
    names = {task: {cls.__name__ for cls in getattr(auto_pipeline, table).values()} for task, table in TASKS.items()}
    return {task: {name: name in taken for name in sorted(found)} for task, found in names.items()}
