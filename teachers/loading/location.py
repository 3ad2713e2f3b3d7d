"""Where pipelines are: a folder, a Hub id, or one .safetensors file with a folder of its configuration."""

from pathlib import Path

from teachers.support.regular import check_regular

INDEX = "model_index.json"
WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")  # endings that no Hub id has


def local_or_hub(path: str) -> str:
    """Check that `path` can be a pipeline, without loading anything.

    Args:
        path: A pipeline folder, a .safetensors file or a Hub id.

    Returns:
        The path for the other functions of this module.

    Raises:
        ValueError: If it looks like a local path and there is no pipeline.
    """
    if not path.strip():
        raise ValueError("the path of a pipeline must be a folder, a Hub id or a .safetensors file, got an empty one")
    local = Path(path)
    if local.is_dir():
        if (local / INDEX).exists():
            check_regular(local / INDEX)
        else:
            nested = f"; did you mean {local / 'pipeline'}?" if (local / "pipeline" / INDEX).exists() else ""
            raise ValueError(f"{path} is a folder without {INDEX}, so it is not a diffusers pipeline{nested}")
        return str(local)
    if local.exists():
        check_regular(local)
        if local.suffix != ".safetensors":
            raise ValueError(
                f"{path} must be a diffusers pipeline folder, a Hub id or a .safetensors file, got another kind of file"
            )
        return str(local)
    if local.suffix.lower() in WEIGHTS:
        raise ValueError(f"there is no file {path}")
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ValueError(
            f"there is no pipeline folder {path}; give a folder that save_pretrained wrote, or a Hub id owner/name"
        )
    return path


def configuration(path: str) -> Path:
    """The folder with the configuration of a single file; it need not exist."""
    return Path(path).with_suffix("")


def config_source(path: str) -> str:
    """The folder or Hub id with the configuration of the pipeline at `path`."""
    return str(configuration(path)) if path.endswith(".safetensors") else path
