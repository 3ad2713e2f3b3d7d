"""Build a release: the source distribution, and a wheel that is built from it. Needs no network.

    python .ci/release.py [--output dist]

Builds the tracked files of the commit. The same commit gives the same bytes: all times are the commit's
(SOURCE_DATE_EPOCH). RELEASING.md has the checklist around it.
"""

import argparse
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {"distill", "eval", "recipes", "teachers"}
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def copy_tracked(target: Path) -> list[str]:
    """Copy the tracked files with plain permissions; returns their names."""
    names = [name for name in git("ls-files").splitlines() if (ROOT / name).is_file()]
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)
        (target / name).chmod(0o755 if os.access(ROOT / name, os.X_OK) else 0o644)
    return names


def build(hook: str, source: Path, output: Path) -> Path:
    """Run a build hook of setuptools in `source`; returns the file that it has made."""
    command = [sys.executable, "-c", BUILD, hook, str(output)]
    done = subprocess.run(command, cwd=source, env=os.environ, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {hook} failed:\n{done.stderr}")
    return output / done.stdout.splitlines()[-1]


def repack(archive: Path, epoch: int) -> None:
    """Write a .tar.gz again with sorted names and fixed times and owners."""
    with tarfile.open(archive) as old:
        members = [(member, old.extractfile(member)) for member in old.getmembers() if member.isfile()]
        with (
            archive.with_suffix(".new").open("wb") as raw,
            gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=epoch) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
        ):
            for member, content in sorted(members, key=lambda pair: pair[0].name):
                info = tarfile.TarInfo(member.name)
                info.size, info.mtime, info.mode = member.size, epoch, 0o755 if member.mode & 0o100 else 0o644
                new.addfile(info, content)
    archive.with_suffix(".new").replace(archive)


def check(sdist: Path, wheel: Path, tracked: list[str]) -> None:
    """Refuse a source distribution that lacks tracked files, and a wheel with anything but the packages."""
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    if missing := sorted(set(tracked) - packed):
        sys.exit(
            f"error: {sdist.name} must hold every tracked file, but MANIFEST.in leaves out {', '.join(missing[:9])}"
        )
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    if tops != PACKAGES:
        sys.exit(f"error: {wheel.name} must hold {', '.join(sorted(PACKAGES))}, got {', '.join(sorted(tops))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--allow-changes", action="store_true", help="build uncommitted changes too")
    args = parser.parse_args()
    if git("status", "--porcelain", "--untracked-files=no") and not args.allow_changes:
        sys.exit("error: there are uncommitted changes; commit them, or pass --allow-changes")
    epoch = int(git("log", "-1", "--format=%ct"))
    os.environ |= {"SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0"}
    os.umask(0o022)
    args.output.mkdir(parents=True, exist_ok=True)
    output = args.output.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        source, unpacked = Path(temporary) / "source", Path(temporary) / "unpacked"
        tracked = copy_tracked(source)
        sdist = build("build_sdist", source, output)
        repack(sdist, epoch)
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked, filter="data")
        (folder,) = unpacked.iterdir()
        wheel = build("build_wheel", folder, output)
    check(sdist, wheel, tracked)
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in (sdist, wheel)]
    (output / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
