"""Folders of clips that VBench evaluates, and speeds relative to real time."""

import pytest
import torch

from eval.pipelines.real_time import times_real_time
from eval.pipelines.vbench import create_folder, save_for_vbench, vbench_name
from teachers.media import Audio, Image, Video

CLIP = Video(frames=4, height=16, width=16, rate=8)


def test_clips_are_named_after_their_prompt_and_number(tmp_path):
    numbers: dict[str, int] = {}
    clips = torch.rand(3, *CLIP.shape)
    files = save_for_vbench(clips, ["a cat", "a dog, running", "a cat"], tmp_path / "new", CLIP, numbers)
    files += save_for_vbench(clips[:1], ["a cat"], tmp_path / "new", CLIP, numbers)
    assert [file.name for file in files] == ["a cat-0.mp4", "a dog, running-0.mp4", "a cat-1.mp4", "a cat-2.mp4"]
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == sorted(file.name for file in files)
    assert (CLIP.judged(CLIP.read(files[0]).values).mean() - clips[0].mean()).abs() < 0.05


@pytest.mark.parametrize(
    "prompt",
    ["a/b", "../../etc/passwd", "a\\b", "a\0b", "a\nb", "", "  ", ".hidden", "a\x1b[31m", "x" * 250, "é" * 130],
)
def test_prompts_that_cannot_be_file_names_are_refused(tmp_path, prompt):
    with pytest.raises(ValueError, match=r"(the prompt .* must|a prompt of VBench must)") as raised:
        save_for_vbench(torch.rand(1, *CLIP.shape), [prompt], tmp_path / "new", CLIP)
    assert str(raised.value).isprintable()
    assert not (tmp_path / "new").exists()


def test_other_files_in_the_folder_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(
        ValueError, match=r"must contain clips only, because VBench reads all its files, got notes\.txt"
    ):
        save_for_vbench(torch.rand(1, *CLIP.shape), ["a cat"], tmp_path, CLIP)


def test_every_clip_must_have_a_prompt(tmp_path):
    with pytest.raises(ValueError, match="every clip must have a prompt, got 2 clips and 1 prompts"):
        save_for_vbench(torch.rand(2, *CLIP.shape), ["a cat"], tmp_path, CLIP)


def test_a_clip_with_the_longest_name_can_be_written(tmp_path):
    (file,) = save_for_vbench(torch.rand(1, *CLIP.shape), ["x" * 234], tmp_path, CLIP, {"x" * 234: 24})
    assert file.is_file() and len(vbench_name("x" * 234, 24)) == 241
    with pytest.raises(ValueError, match="must have at most 234 bytes"):
        vbench_name("x" * 236, 24)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "clips").write_text("")
    with pytest.raises(ValueError, match="clips must be a folder for clips, got a file"):
        create_folder(tmp_path / "clips")


def test_times_real_time():
    assert times_real_time(Video(80, 8, 8, 16), 0.5) == 10
    assert times_real_time(Audio(2, 44100 * 30, 44100), 15) == 2
    assert times_real_time(Image(8, 8), 0.5) is None
    with pytest.raises(ValueError, match="the latency must be positive, got 0 s"):
        times_real_time(Image(8, 8), 0)
