"""Which family takes which pipeline: the installed teacher families, found by the class that a pipeline names."""

from importlib.metadata import entry_points

from teachers import pocket
from teachers.core.teacher import Teacher
from teachers.loading.source import class_name, local_or_hub

GROUP = "distill.teachers"


def installed() -> dict[str, type[Teacher]]:
    """Every installed family by name, those of other packages too."""
    return {point.name: point.load() for point in sorted(entry_points(group=GROUP))}


def locate(path: str) -> str:
    """`path` as `family_of` and loaders take it, "pocket" too; ValueError where nothing can be there."""
    return str(pocket.PIPELINE) if path == "pocket" else local_or_hub(path)


def family_of(path: str) -> str:
    """The name of the family that takes the pipeline at `path` (as `Teacher.locate` gives it), weights unread.

    ValueError, with the known families and how to add one, where none does.
    """
    families, name = installed(), class_name(path)
    if name is None:
        raise ValueError(
            f"{path} does not say which pipeline it holds; lay the pipeline's folder beside it, under the same name "
            "without .safetensors, or name the family"
        )
    takes = {family: cls for family, cls in families.items() if name in [kind.__name__ for kind in cls.pipelines]}
    for family, cls in takes.items():
        if "pipelines" in vars(cls):  # not a variation of another family, which has to be asked for by name
            return family
    known = "; ".join(
        f"{family} ({', '.join(kind.__name__ for kind in cls.pipelines)})"
        for family, cls in families.items()
        if cls.pipelines
    )
    raise ValueError(
        f"no installed family takes a {name}; known are {known}; a new one is one class, such as teachers/families/dit.py, and "
        f"a line in the entry-point group {GROUP} of a package's setup.cfg (see CONTRIBUTING.md)"
    )
