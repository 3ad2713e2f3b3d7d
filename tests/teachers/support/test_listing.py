"""The list of images of a folder; clean-fid's own list is the oracle."""

import os
from glob import glob

import pytest
from cleanfid.utils import EXTENSIONS

from teachers.support.listing import ENDINGS, list_files, list_images

NAMES = [
    "a.png",
    "b.PNG",
    "c.JPEG",
    "d.jpg",
    "e.JPG",
    "f.Jpg",
    "g.bmp",
    "h.BMP",
    "i.webp",
    "j.WEBP",
    "k.tif",
    "l.tiff",
    "m.TIFF",
    "n.ppm",
    "o.pgm",
    "p.gif",
    "q.npy",
    "r.txt",
    "s.jpeg",
    "t.png.bak",
    ".u.png",
    "v,png",
    "w.png.png",
    "sub/a.png",
    "sub/sub/b.jpg",
    "sub-a/c.png",
    ".hidden/d.png",
    ".ipynb_checkpoints/a-checkpoint.png",
    "sub/.e.png",
    "__MACOSX/f.png",
    "png/g.png",
    "ü/日本.png",
]


def cleanfid_list(folder):
    """The expression of `cleanfid.fid.get_folder_features`."""
    return sorted(file for ext in EXTENSIONS for file in glob(os.path.join(folder, f"**/*.{ext}"), recursive=True))


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    (tmp_path / "far").mkdir()
    (tmp_path / "far/x.png").write_bytes(b"")
    os.symlink(tmp_path / "far", tmp_path / "images/linked")
    os.symlink(tmp_path / "far", tmp_path / "images/sub/linked again")
    os.symlink(tmp_path / "images/a.png", tmp_path / "images/z.png")
    os.symlink(tmp_path / "gone.png", tmp_path / "images/broken.png")
    return tmp_path / "images"


def test_list_is_that_of_clean_fid_in_its_order(folder):
    assert [str(file) for file in list_images(folder)] == cleanfid_list(folder)
    assert {ending.removeprefix(".") for ending in ENDINGS} == EXTENSIONS


def test_trailing_slash_and_relative_folder_list_the_same(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    for name in ("images", "./images/", "far/../images"):
        listed = list_images(type(folder)(name))
        assert [file.resolve() for file in listed] == [file.resolve() for file in list_images(folder)]


def test_links_in_a_circle_end(folder):
    expected = list_images(folder)
    os.symlink(folder, folder / "sub/loop")
    os.symlink(folder / "self", folder / "self")
    os.symlink(folder / "sub", folder / "sub/sub/up")
    os.symlink(folder / "one", folder / "two")
    os.symlink(folder / "two", folder / "one")
    assert list_images(folder) == expected


def test_folder_named_like_an_image_is_searched_and_is_no_image(tmp_path):
    (tmp_path / "a.png").mkdir()
    (tmp_path / "a.png/b.png").write_bytes(b"")
    assert list_images(tmp_path) == [tmp_path / "a.png/b.png"]


def test_hidden_folder_itself_and_brackets_are_listed(tmp_path):
    folder = tmp_path / ".cache [1]"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"")
    assert list_images(folder) == [folder / "a.png"]


@pytest.mark.parametrize(("name", "hint"), [("images.zip", "; unpack it first"), ("notes.txt", "")])
def test_file_instead_of_a_folder_is_an_error(tmp_path, name, hint):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{name} is a file, expected a folder of images .*\){hint}$"):
        list_files(tmp_path / name)
    with pytest.raises(ValueError, match="gone does not exist"):
        list_files(tmp_path / "gone")
