"""SHA-256 checksums of the files that this project writes and reads again. All of them are made and verified here.

    JSON       the entry "sha256" covers all other entries      `write_sealed_json`, `read_sealed_json`,
                                                                `seal`, `unseal`
    tensors    safetensors whose metadata has the SHA-256 of    `save_tensors`, `read_metadata`, `load_tensors`
               names, dtypes, shapes and data, and of itself
    folders    the JSON file of a folder has the SHA-256 of     `write_manifest`, `read_manifest`, `verify_files`
               its other files

Whoever reads a file passes what it must belong to (a key, a step, a run), so a file that was exchanged with another
valid one is found too. Checksums find accidents; somebody who can write the files can write checksums as well.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachers.support.files import atomic_write, sha256, sha256_file, tensor_bytes
from teachers.support.json_files import parse_json
from teachers.support.regular import check_regular, read_bytes

if TYPE_CHECKING:  # torch is slow to import
    from torch import Tensor

SHA256 = "sha256"  # the entry with the checksum
CONTENT = "content"  # the checksum of the tensors in the metadata of a safetensors file
MANIFEST = "manifest.json"
CHANGED = "has changed since it was written"


class Damaged(ValueError):
    """A file is not what was written: its checksum is missing or does not match, or it cannot be read."""


# --- JSON -------------------------------------------------------------------------------------------------------------


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as JSON values, with their checksum as the entry "sha256"; an earlier checksum is replaced."""
    plain: dict[str, Any] = json.loads(json.dumps({k: v for k, v in values.items() if k != SHA256}))
    return plain | {SHA256: _checksum(plain)}


def unseal(text: str | bytes, what: object, required: bool = True) -> dict[str, Any]:
    """The values of a JSON text that `seal` made, without their checksum.

    Args:
        text: The JSON text.
        what: What the text is, for error messages, such as the file.
        required: Whether values without a checksum are refused. Otherwise they are taken as somebody's own.

    Raises:
        Damaged: If the text is not a JSON object with the right checksum.
    """
    try:
        values = parse_json(text if isinstance(text, str) else text.decode("utf-8-sig"), constants=True)
        if not isinstance(values, dict):
            raise Damaged(f"{what} must be a JSON object, got {type(values).__name__}")
        found = values.pop(SHA256, None)
        expected = _checksum(values)
    except ValueError as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged(f"{what} is not valid JSON ({' '.join(str(error).split())[:200]})") from error
    if found is None and required:
        raise Damaged(f'{what} has no checksum (its entry "{SHA256}")')
    if found not in (None, expected):
        raise Damaged(f'{what} {CHANGED} (its entry "{SHA256}" does not match)')
    return values


def write_sealed_json(path: Path, values: Mapping[str, Any], concurrent: bool = False) -> None:
    """Write a JSON file with its checksum atomically; see `atomic_write` for `concurrent` and errors."""
    with atomic_write(path, concurrent) as temporary:
        temporary.write_text(json.dumps(seal(values), indent=2) + "\n", encoding="utf-8")


def read_sealed_json(path: Path, required: bool = True) -> dict[str, Any]:
    """The values of a JSON file; see `unseal`.

    Raises:
        OSError: If the file cannot be opened.
        Damaged: If its checksum does not match.
    """
    return unseal(read_bytes(path), path, required)


def _checksum(values: Mapping[str, Any]) -> str:
    return sha256([json.dumps(values, sort_keys=True).encode()])


# --- tensors ----------------------------------------------------------------------------------------------------------


def save_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with checksums; not atomically.

    Args:
        path: The file.
        tensors: Contiguous tensors on the CPU.
        metadata: What identifies the tensors.
    """
    from safetensors.torch import save_file

    sealed = {**metadata, CONTENT: digest(tensors)}
    save_file(dict(tensors), path, metadata=sealed | {SHA256: _checksum(sealed)})


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a file of `save_tensors`. The tensors are neither read nor verified.

    Raises:
        FileNotFoundError: If there is no file.
        Damaged: If the metadata has another checksum than its own, or the file is not readable.
    """
    from safetensors import safe_open

    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
    except FileNotFoundError:
        raise
    except Exception as error:  # safetensors raises different types for damaged files
        raise Damaged(f"{path} is not readable ({type(error).__name__}: {error})") from error
    found = metadata.pop(SHA256, None)
    if found is None:
        raise Damaged(f"{path} has no checksum")
    if found != _checksum(metadata):
        raise Damaged(f"{path} {CHANGED}")
    return metadata


def load_tensors(path: Path) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """The tensors, on the CPU, and the metadata of a file of `save_tensors`; both are verified.

    Raises:
        FileNotFoundError: If there is no file.
        Damaged: If a checksum does not match.
    """
    from safetensors.torch import load_file

    metadata = read_metadata(path)
    try:
        tensors = load_file(path)
        found = digest(tensors)
    except Exception as error:  # safetensors raises different types for damaged files
        raise Damaged(f"{path} is not readable ({type(error).__name__}: {error})") from error
    if metadata.pop(CONTENT, None) != found:
        raise Damaged(f"{path} {CHANGED}")
    return tensors, metadata


def digest(values: Mapping[str, Any]) -> str:
    """The SHA-256 of tensors or NumPy arrays by name: names, dtypes, shapes and data."""
    parts: list[bytes | memoryview | Path] = []
    for name, value in sorted(values.items()):
        parts.append(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        parts.append(tensor_bytes(value) if hasattr(value, "detach") else value.tobytes())
    return sha256(parts)


# --- folders ----------------------------------------------------------------------------------------------------------


def write_manifest(folder: Path, entries: Mapping[str, Any]) -> None:
    """Write the manifest of a folder: `entries`, which identify it, and the SHA-256 of its files except for pages."""
    present = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix != ".md"]
    files = {file.relative_to(folder).as_posix(): sha256_file(file) for file in present if file.name != MANIFEST}
    (folder / MANIFEST).write_text(json.dumps(seal({**entries, "files": files}), indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The entries of a folder's manifest and, as "files", the SHA-256 of the files.

    Raises:
        FileNotFoundError: If there is no manifest.
        Damaged: If the manifest is damaged.
    """
    manifest = unseal(read_bytes(folder / MANIFEST), MANIFEST)
    if not isinstance(manifest.get("files"), dict):
        raise Damaged(f"{MANIFEST} lists no files")
    return manifest


def check_shipped(root: Path, path: Path, title: str) -> Path:
    """Compare a file or folder of shipped weights with their manifest, if there is one.

    Args:
        root: The folder of the weights.
        path: The file or folder in it.
        title: What the weights are, for the error message.

    Returns:
        `path`.

    Raises:
        ValueError: If a file has changed.
    """
    name = path.relative_to(root).as_posix()
    if (root / MANIFEST).is_file():
        try:
            listed = read_manifest(root)["files"]
            verify_files(root, listed, [each for each in listed if each == name or each.startswith(f"{name}/")])
        except Damaged as error:
            raise ValueError(f"{title} in {root} is damaged ({error}); install this package again") from error
    return path


def verify_files(folder: Path, files: Mapping[str, str], names: Iterable[str]) -> None:
    """Raise Damaged if a file of `names` is missing or does not have the SHA-256 in `files`."""
    for name in names:
        if name not in files or not (folder / name).is_file():
            raise Damaged(f"{name} is missing")
        if sha256_file(folder / name) != files[name]:
            raise Damaged(f"{name} {CHANGED}")
