"""Random damage to the files of a folder: values, structure, encodings, bytes, headers, links, special files, code."""

import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

DEEP: list[Any] = []
for _ in range(400):
    DEEP = [DEEP]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 64, 10**6, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e-300, 1e308,
    float("nan"), float("inf"), "", " ", "null", "none", "pocket", "..", "../../up", "/etc/passwd", "/dev/zero", "~",
    "\0", "\ud83d",
    "\x1b[31mred\x1b]0;title\x07", "\u202etxt.exe", "\u200b", "x" * 20_000, "é", "<script>alert(1)</script>",
    "${oc.env:HOME}", "{{ 7*7 }}", "%s%n", "os.system", "float64", "cuda:7", [], {}, [None], [[]], [1, 2, 3],
    ["evil", "Evil"], ["diffusers", "DiffusionPipeline"], ["transformers", "AutoModel"], ["diffusers", "os"],
    ["builtins", "exec"], {"": None}, {"a": {"b": [1]}}, [0.1] * 1000, list(range(-3, 3)), DEEP,
]  # fmt: skip
TEXTS = [
    "{", "[", "]", ":", ",", '"', "\n", "\t", "\0", "NaN", "-Infinity", "1e999", "&a", "*a", "<<: ", "\ufeff", "\u2028",
    "'", "!!python/object/apply:os.system ['true']", "#", "- ", "9" * 5000, "[" * 5000, '{"a":' * 2000,
]  # fmt: skip


def damage(rng: random.Random, folder: Path, canary: Path) -> list[str]:
    """Change one to three things in `folder`; returns what was done.

    Args:
        rng: The source of randomness.
        folder: The folder.
        canary: A file that injected code would create.
    """
    return [_damage_once(rng, folder, canary) for _ in range(rng.choice((1, 1, 1, 2, 3)))]


def _damage_once(rng: random.Random, folder: Path, canary: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return "nothing"
    small = [file for file in files if file.suffix in STRUCTURED]
    file = rng.choice(small if small and rng.random() < 0.7 else files)
    kinds = [*STRUCTURED.get(file.suffix, ()) * 4, *BINARY.get(file.suffix, ()) * 3, *ANY]
    change = inject_code if rng.random() < 0.05 else rng.choice(kinds)
    try:
        if change is inject_code:
            inject_code(rng, file, canary)
        else:
            change(rng, file)
    except (
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        OSError,
        struct.error,
        RecursionError,
        yaml.YAMLError,
    ):
        change = truncate
        if file.is_file():
            truncate(rng, file)
    return f"{change.__name__} {file.relative_to(folder)!s}"


def change_value(rng: random.Random, root: Any) -> Any:
    """Replace, delete, rename, add, swap or wrap one value somewhere in nested dicts and lists."""
    group = root
    while True:
        keys = list(group) if isinstance(group, dict) else list(range(len(group))) if isinstance(group, list) else []
        if not keys:
            return rng.choice(VALUES)
        key = rng.choice(keys)
        if isinstance(group[key], dict | list) and group[key] and rng.random() < 0.8:
            group = group[key]
            continue
        break
    what = rng.choice(["replace", "replace", "replace", "scale", "delete", "rename", "add", "swap", "wrap", "text"])
    value = group[key]
    if what == "delete":
        del group[key]
    elif what == "rename" and isinstance(group, dict):
        group[rng.choice([v for v in VALUES if isinstance(v, str)])] = group.pop(key)
    elif what == "add" and isinstance(group, dict):
        group[str(rng.choice(VALUES))[:100]] = rng.choice(VALUES)
    elif what == "swap":
        other = rng.choice(keys)
        group[key], group[other] = group[other], group[key]
    elif what == "wrap":
        group[key] = rng.choice([[value], {"value": value}, [value, value], str(value)])
    elif what == "text":
        group[key] = f"{value}{rng.choice(TEXTS)}"
    elif what == "scale" and isinstance(value, int | float):
        group[key] = rng.choice(
            [value + 1, value - 1, -value, value * 2, value // 2 if value else 1, value * 1000, float(value)]
        )
    else:
        group[key] = rng.choice(VALUES)
    return root


def change_json(rng: random.Random, file: Path) -> None:
    values = json.loads(file.read_text())
    for _ in range(rng.choice((1, 1, 2, 4))):
        values = change_value(rng, values)
    _write(file, json.dumps(values).encode("utf-8", "surrogatepass"))


def change_lines(rng: random.Random, file: Path) -> None:
    """One line of a .jsonl file."""
    lines = file.read_text().splitlines()
    number = rng.randrange(len(lines))
    lines[number] = json.dumps(change_value(rng, json.loads(lines[number])))
    _write(file, "\n".join(lines).encode("utf-8", "surrogatepass"))


def change_yaml(rng: random.Random, file: Path) -> None:
    values = yaml.safe_load(file.read_text())
    for _ in range(rng.choice((1, 1, 2))):
        values = change_value(rng, values)
    _write(file, yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass"))


def change_text(rng: random.Random, file: Path) -> None:
    """Insert, repeat or remove a piece of text."""
    text = file.read_text(errors="replace")
    at = rng.randrange(len(text) + 1)
    _write(
        file, (text[:at] + rng.choice(TEXTS) + text[at + rng.choice((0, 0, 1, 20)) :]).encode("utf-8", "surrogatepass")
    )


def change_encoding(rng: random.Random, file: Path) -> None:
    text = file.read_text(errors="replace")
    encoding = rng.choice(["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "cp037"])
    _write(file, text.encode(encoding, "replace"))


def change_header(rng: random.Random, file: Path) -> None:
    """The JSON header of a .safetensors file, or its length."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    if rng.random() < 0.2:
        _write(file, struct.pack("<Q", rng.choice([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1])) + data[8:])
        return
    header = json.loads(data[8 : 8 + length])
    if rng.random() < 0.5:
        header = change_value(rng, header)
    else:
        entry = header[rng.choice([key for key in header if key != "__metadata__"])]
        key = rng.choice(["dtype", "shape", "data_offsets"])
        entry[key] = {
            "dtype": rng.choice(["F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "X", ""]),
            "shape": rng.choice([[], [0], [1], [-1], [2**40, 2**40], entry["shape"][::-1], [*entry["shape"], 1]]),
            "data_offsets": rng.choice([[0, 0], [0, 2**62], [5, 1], [-4, 4], entry["data_offsets"][::-1]]),
        }[key]
    text = json.dumps(header).encode()
    _write(file, struct.pack("<Q", len(text)) + text + data[8 + length :])


def change_numbers(rng: random.Random, file: Path) -> None:
    """The tensors' bytes of a .safetensors file: NaN, infinity, zero or random."""
    data = bytearray(file.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    first, count = 8 + length, rng.choice((1, 100, 10_000))
    start = rng.randrange(first, len(data))
    piece = rng.choice([struct.pack("<f", float("nan")), struct.pack("<f", float("inf")), b"\0" * 4, rng.randbytes(4)])
    data[start : min(len(data), start + 4 * count)] = (piece * count)[: len(data[start : start + 4 * count])]
    _write(file, bytes(data))


def change_arrays(rng: random.Random, file: Path) -> None:
    """An array of an .npz: other values, shape, type, or a pickle."""
    import numpy as np

    with np.load(file, allow_pickle=False) as stored:
        arrays: dict[str, Any] = {key: stored[key] for key in stored}
    key = rng.choice(sorted(arrays))
    value = arrays[key]
    changes: list[Callable[[], Any]] = [
        lambda: value * np.nan, lambda: value * 1e200, lambda: -value, lambda: value.astype(complex) * 1j,
        lambda: value[:1], lambda: value.T[..., None], lambda: value.astype(np.int8), lambda: np.array(None),
        lambda: np.array({"a": 1}),
        lambda: np.array("text"), lambda: np.zeros((0,)), lambda: np.zeros((0, 5)), lambda: value.astype(np.float16),
        lambda: np.random.default_rng(rng.randrange(99)).normal(size=value.shape), lambda: value.reshape(-1),
    ]  # fmt: skip
    if rng.random() < 0.15:
        del arrays[key]
    else:
        arrays[key] = rng.choice(changes)()
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, **arrays)
    _write(file, buffer.getvalue())


def change_image(rng: random.Random, file: Path) -> None:
    """Another image: another size, mode or format, or a header that promises a huge one."""
    from PIL import Image

    mode = rng.choice(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "YCbCr"])
    size = rng.choice([(1, 1), (1, 3000), (32, 32), (33, 31), (3000, 1), (64, 64)])
    kind = rng.choice(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "ICO", "PPM", "TGA"])
    image, buffer = Image.new("RGB" if mode == "I;16" else mode, size), io.BytesIO()
    try:
        image.save(buffer, kind)
    except (OSError, ValueError, KeyError):
        image.convert("RGB").save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    if rng.random() < 0.2 and data[12:16] == b"IHDR":
        data[16:24] = struct.pack(
            ">II", *rng.choice([(2**31 - 1, 2**31 - 1), (60_000, 60_000), (0, 0), (1, 2**31 - 1)])
        )
    _write(file, bytes(data))


def truncate(rng: random.Random, file: Path) -> None:
    data = file.read_bytes()
    _write(file, data[: rng.randrange(len(data) + 1)])


def flip_bits(rng: random.Random, file: Path) -> None:
    data = bytearray(file.read_bytes())
    for _ in range(rng.choice((1, 1, 8, 100))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    _write(file, bytes(data))


def flip_early_bits(rng: random.Random, file: Path) -> None:
    """Bits of the first kilobyte, where formats have their headers."""
    data = bytearray(file.read_bytes())
    data[rng.randrange(min(1024, len(data)))] ^= 1 << rng.randrange(8)
    _write(file, bytes(data))


def append(rng: random.Random, file: Path) -> None:
    _write(file, file.read_bytes() + rng.choice([b"\0", b"\n{}", rng.randbytes(100), file.read_bytes()[:1000]]))


def random_bytes(rng: random.Random, file: Path) -> None:
    _write(file, rng.randbytes(rng.choice((1, 8, 100, 5000))))


def empty(rng: random.Random, file: Path) -> None:
    _write(file, b"")


def delete(rng: random.Random, file: Path) -> None:
    file.unlink()


def swap(rng: random.Random, file: Path) -> None:
    """The content of another file of the folder."""
    others = [path for path in sorted(file.parents[1].rglob("*")) if path.is_file() and path != file]
    content = rng.choice(others).read_bytes()
    _write(file, content)


def rename(rng: random.Random, file: Path) -> None:
    name = rng.choice(
        ["a\nb", "-rf", "\u202efdp", "é", "x" * 200, ".hidden", "con", "a b", "\x1b[31m", "..x", file.stem]
    )
    file.rename(file.with_name(name + rng.choice([file.suffix, file.suffix.upper(), ""])))


def become_folder(rng: random.Random, file: Path) -> None:
    file.unlink()
    file.mkdir()


def become_link(rng: random.Random, file: Path) -> None:
    file.unlink()
    file.symlink_to(rng.choice(["/etc/passwd", "/nonexistent", file.name, "..", "/dev/null", "/proc/self/environ"]))


def become_pipe(rng: random.Random, file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def become_sparse(rng: random.Random, file: Path) -> None:
    """Up to a gigabyte of zeros that take no space on the disk."""
    with file.open("r+b") as stream:
        stream.truncate(rng.choice((2**20, 2**24, 2**24, 2**30)))


def remove_folder(rng: random.Random, file: Path) -> None:
    shutil.rmtree(file.parent)


CODE = "import pathlib\npathlib.Path({!r}).touch()\nclass Evil: pass\n"


class _Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (CODE.format(str(self.canary)),)


def inject_code(rng: random.Random, file: Path, canary: Path) -> None:
    """A pickle or a module in place of a file or beside it, and names in JSON files that would load it."""
    payload, source = pickle.dumps(_Payload(canary)), CODE.format(str(canary))
    for name in ("evil.py", "modeling_evil.py", "pipeline.py"):
        (file.parent / name).write_text(source)
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "model.ckpt"):
        _write(file.parent / name, payload)
    if file.suffix == ".json":
        values = json.loads(file.read_text())
        if isinstance(values, dict):
            names = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
            values |= {"auto_map": names, "custom_pipeline": "evil"}
            if "_class_name" in values and rng.random() < 0.5:
                values |= {"_class_name": rng.choice([["evil", "Evil"], "Evil", "evil.Evil"]), "unet": ["evil", "Evil"]}
            _write(file, json.dumps(values).encode())
    elif file.suffix in (".safetensors", ".pt", ".npz"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", payload)
            archive.writestr("mu.npy", payload)
        _write(file, rng.choice([payload, buffer.getvalue()]))


def _write(file: Path, data: bytes) -> None:
    if file.exists() or file.is_symlink():
        file.unlink()
    file.write_bytes(data)


TEXT: tuple[Callable[[random.Random, Path], None], ...] = (change_text, change_encoding)
STRUCTURED: dict[str, tuple[Callable[[random.Random, Path], None], ...]] = {
    ".json": (change_json, change_json, change_json, *TEXT),
    ".jsonl": (change_lines, change_lines, *TEXT),
    ".yaml": (change_yaml, change_yaml, *TEXT),
    ".csv": TEXT,
    ".txt": TEXT,
}
BINARY: dict[str, tuple[Callable[[random.Random, Path], None], ...]] = {
    ".safetensors": (change_header, change_header, change_numbers),
    ".npz": (change_arrays, change_arrays),
    ".png": (change_image,),
    ".jpg": (change_image,),
    ".parquet": (flip_early_bits,),
    ".tar": (flip_early_bits,),
}
ANY: tuple[Callable[[random.Random, Path], None], ...] = (
    truncate, flip_bits, flip_early_bits, append, random_bytes, empty, delete, swap, rename, become_folder, become_link,
    become_pipe, become_sparse, remove_folder,
)  # fmt: skip
