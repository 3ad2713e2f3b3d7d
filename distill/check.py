"""Check a teacher or an exported student against stock diffusers.

    fewstep check PATH [--sigma-data 0.5] [--size frames=9 --size height=64 --size width=64]

For authors of families and methods: the stock sampler against ours, the condition against what the pipeline passes to
its network, encoding and decoding, the exact tangent against finite differences, and the export against its student.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from distill.checks.export_checks import check_student
from distill.checks.table import table
from distill.checks.teacher_checks import check_teacher
from distill.config.registry import TEACHERS, find
from distill.config.run_files import CHECKPOINTS, PIPELINE
from distill.config.sections import TeacherRecipe
from distill.config.typed import check_value
from teachers.loading.embedded import locate, usual_size
from teachers.loading.registry import family_of
from teachers.support.errors import reads


@reads
def check(
    path: str, family: str | None = None, sigma_data: float | None = None, size: Mapping[str, float] | None = None
) -> int:
    """Run the checks of a teacher or of an exported student and print a table.

    Args:
        path: A teacher (pipeline folder, Hub id, .safetensors file, name), a run's folder or an exported pipeline.
        family: The teacher's family; None: the one that takes the pipeline.
        sigma_data: Standard deviation of the teacher's native latents or pixels; None: the family's.
        size: Size of a clip or sound by key, as `teacher.size` of a recipe; None: the default of the pipeline's call.

    Returns:
        The exit code: 0 if every check passed, else 1.

    Raises:
        ValueError: If there is no such pipeline, or no family takes it.
    """
    check_value(TeacherRecipe, "sigma_data", sigma_data, "--sigma-data")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = next((f for f in (Path(path) / PIPELINE, Path(path)) if (f / "distill.json").is_file()), None)
    if folder is not None:
        checks = check_student(folder, device)
    elif (Path(path) / CHECKPOINTS).is_dir():
        raise ValueError(f"{path} is a run without a pipeline; export its student first with fewstep export {path}")
    else:
        located = locate(path)
        name = family or family_of(located)
        kind = find(TEACHERS, name)
        if not kind.pipelines:
            raise ValueError(f"--family must be a family with pipelines, got {name!r}")
        checks = check_teacher(kind, kind.locate(path), device, sigma_data, size or usual_size(path))
    print(table(checks))
    failed = [check.name for check in checks if not check.passed]
    print(f"failed: {', '.join(failed)}" if failed else "every check passed")
    return int(bool(failed))


if __name__ == "__main__":
    from distill.cli import main

    main("check")
