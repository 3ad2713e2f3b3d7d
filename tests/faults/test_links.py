"""Run folders of strangers: links, hard links and folders where a run writes, and records that name other files."""

import hashlib
import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, RepoUrl

from distill.config.run_files import OWN
from distill.export import export_and_push
from distill.exporting.distill_json import EVALUATION_PROMPTS
from distill.exporting.hub import push
from distill.train import train
from distill.training import checkpoint
from distill.training.jsonl_log import JsonlLog
from distill.training.run_folder import lock_run_folder
from eval.compare import OWN as REPORT_FILES
from eval.compare import compare
from eval.config.options import Options
from eval.pipelines.demo_pipelines import Demo
from eval.pipelines.inputs import read_inputs
from eval.pipelines.run_prompts import own_prompts
from eval.pipelines.runs import read_run
from eval.report.training_log import curves
from teachers.loading.contents import changed_files
from teachers.support.checksums import seal
from teachers.support.files import atomic_write, remove_stale
from teachers.support.locks import lock_folder
from teachers.support.regular import check_owned, is_inside, outside_links
from tests.commands import fewstep
from tests.faults.test_special_files import state

PRECIOUS = "precious\n"


@pytest.fixture
def precious(tmp_path) -> Path:
    """A file of the user that nobody may read or change."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "file").write_text(PRECIOUS)
    return folder / "file"


def unchanged(precious: Path) -> bool:
    return precious.read_text() == PRECIOUS and [path.name for path in precious.parent.iterdir()] == [precious.name]


@pytest.mark.parametrize("target", ["file", "folder", "nothing"])
@pytest.mark.parametrize("name", [*OWN, "run", ".lock", "samples/00000002.png", "cache/pairs", "checkpoints/best"])
@pytest.mark.first_is_quick
def test_links_where_a_run_writes_are_refused(tmp_path, precious, name, target):
    link = tmp_path / "runs" / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to({"file": precious, "folder": precious.parent, "nothing": precious.parent / "new"}[target])
    problem = "run cannot be written" if name == ".lock" else f"{name} must be a file or a folder, got a link"
    with pytest.raises(ValueError, match=problem), lock_run_folder(tmp_path / "runs" / "run"):
        raise AssertionError("the folder is not used")
    assert unchanged(precious) and link.is_symlink()


@pytest.mark.parametrize("name", REPORT_FILES)
def test_links_where_a_report_is_written_are_refused(tmp_path, make_run, precious, name):
    out = tmp_path / "report"
    out.mkdir()
    (out / name).symlink_to(precious)
    with pytest.raises(ValueError, match=rf"{name} must be a file or a folder, got a link"):
        check_owned(out, REPORT_FILES)
    assert unchanged(precious)


def test_comparison_does_not_write_through_links(tmp_path, make_run, precious):
    out = tmp_path / "report"
    out.mkdir()
    (out / "report.json").symlink_to(precious)
    with pytest.raises(ValueError, match=r"report\.json must be a file or a folder, got a link"):
        compare([make_run()], out, samples=2, lpips=None, features="pixels")
    assert unchanged(precious)


@pytest.mark.parametrize("name", [".pipeline.tmp", ".recipe.yaml.tmp", ".exported.json.77.tmp", "cache/.x.tmp"])
def test_links_at_temporary_names_are_removed_and_not_followed(tmp_path, precious, name):
    (tmp_path / "run" / "cache").mkdir(parents=True)
    for target in (precious, precious.parent):
        (tmp_path / "run" / name).symlink_to(target)
        remove_stale(tmp_path / "run", (".*.tmp", "cache/.*.tmp"))
        assert not (tmp_path / "run" / name).is_symlink() and unchanged(precious)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_atomic_writes_replace_links_and_never_what_they_lead_to(tmp_path, precious, link):
    for name in ("recipe.yaml", ".recipe.yaml.tmp"):
        link(precious, tmp_path / name)
    with atomic_write(tmp_path / "recipe.yaml") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "recipe.yaml").read_text() == "new" and unchanged(precious)


def test_hard_links_of_logs_and_of_the_lock_are_not_written(tmp_path, precious):
    """`cp -al` makes such copies, and a stranger's archive can hold them."""
    run = tmp_path / "run"
    run.mkdir()
    precious.write_text(first := json.dumps(seal({"step": 1, "run": ""})) + "\n")
    for name in ("log.jsonl", ".lock"):
        os.link(precious, run / name)
    with lock_run_folder(run):
        log = JsonlLog(run / "log.jsonl", 1)
        log.append({"step": 2})
    assert precious.read_text() == first
    assert (run / "log.jsonl").read_text() == first + json.dumps(seal({"step": 2, "run": ""})) + "\n"


@pytest.mark.parametrize("target", ["file", "nothing"])
def test_logs_do_not_follow_links(tmp_path, precious, target):
    (tmp_path / "log.jsonl").symlink_to(precious if target == "file" else precious.parent / "new")
    log = JsonlLog(tmp_path / "log.jsonl", 5)  # records that are not of this run are removed
    with nullcontext() if target == "file" else pytest.warns(UserWarning, match="must be a file, got a link"):
        log.append({"step": 6})
    assert unchanged(precious)


def test_a_folder_is_never_replaced_by_a_file_or_a_file_by_a_folder(tmp_path):
    (tmp_path / "figures.json").mkdir()
    (tmp_path / "figures.json" / "mine").write_text(PRECIOUS)
    (tmp_path / "pipeline").write_text(PRECIOUS)
    refused = pytest.raises(ValueError, match=r"figures\.json must be a file, got a folder")
    with refused, atomic_write(tmp_path / "figures.json") as temporary:
        temporary.write_text("new")
    refused = pytest.raises(ValueError, match="pipeline must be a folder, got a file")
    with refused, atomic_write(tmp_path / "pipeline") as temporary:
        temporary.mkdir()
    assert (tmp_path / "figures.json" / "mine").read_text() == (tmp_path / "pipeline").read_text() == PRECIOUS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "pipeline"]


@pytest.mark.parametrize("name", ["checkpoints", "pipeline"])
def test_files_in_the_places_of_folders_are_refused_before_training(tmp_path, name):
    (tmp_path / name).write_text(PRECIOUS)
    with pytest.raises(ValueError, match=f"{name} must be a folder, got a file"), lock_run_folder(tmp_path):
        pass
    assert (tmp_path / name).read_text() == PRECIOUS


def test_training_refuses_a_linked_recipe(recipe, precious):
    run = recipe("train.steps=1")
    run.folder.mkdir(parents=True)
    (run.folder / "recipe.yaml").symlink_to(precious)
    with pytest.raises(ValueError, match=r"recipe\.yaml must be a file or a folder, got a link"):
        train(run)
    assert unchanged(precious)


def test_damaged_checkpoints_are_renamed_without_following_links(tmp_path, precious):
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        checkpoint.save(folder, state(step), keep=2)
    (folder / "00000002" / "meta.json").write_text("{}")
    (folder / "damaged-00000002").symlink_to(precious.parent)
    (folder / ".00000003.tmp").symlink_to(precious.parent)
    with pytest.warns(UserWarning, match="is damaged"):
        checkpoint.quarantine_damaged(folder)
    assert unchanged(precious) and (folder / "damaged-00000002" / "meta.json").is_file()


@pytest.mark.parametrize("name", ["²", "1", "00000002.5", "٠٠٠٠٠٠٠٢", "9" * 100])
def test_folders_with_other_names_are_no_checkpoints(tmp_path, name):
    checkpoint.save(tmp_path, state(1), keep=1)
    (tmp_path / name).mkdir()
    assert checkpoint.saved_steps(tmp_path) == [1]


OUTSIDE = {
    "absolute": lambda run, precious: str(precious),
    "upwards": lambda run, precious: os.path.relpath(precious, run / "pipeline"),
    "passwords": lambda run, precious: "/etc/passwd",
    "environment": lambda run, precious: "/proc/self/environ",
    "standard input": lambda run, precious: "/dev/stdin",
    "device": lambda run, precious: "/dev/zero",
    "descriptor": lambda run, precious: "/dev/fd/0",
    "run's folder": lambda run, precious: "../../file",
    "missing": lambda run, precious: "training_prompts.txt",
    "working folder": lambda run, precious: "file",
}


def with_evaluation(run: Path, **changes) -> Path:
    file = run / "pipeline" / "distill.json"
    stored = json.loads(file.read_text())
    stored["evaluation"] |= changes
    file.write_text(json.dumps(stored))
    return run


@pytest.mark.parametrize("named", OUTSIDE)
def test_prompts_of_a_record_are_not_read_outside_of_its_folder(make_run, precious, monkeypatch, named):
    monkeypatch.chdir(precious.parent)
    run = make_run()
    (run.parents[1] / "file").write_text(PRECIOUS)
    with_evaluation(run, prompts=OUTSIDE[named](run, precious))
    with pytest.raises(ValueError, match=r"names the prompts .* which are not in its folder; give --prompts"):
        read_inputs(Options([run], run.parent / "out"))
    with pytest.raises(ValueError, match="not in its folder"):
        own_prompts([read_run(run)])


def test_prompts_given_by_the_user_replace_those_outside(make_run, tmp_path):
    (tmp_path / "mine.txt").write_text("a coat\n")
    run = with_evaluation(make_run(), prompts="/etc/passwd")
    inputs = read_inputs(Options([run], tmp_path / "out", prompts=str(tmp_path / "mine.txt"), samples=2))
    assert inputs.prompts == ["a coat", "a coat"]


@pytest.mark.parametrize("target", ["file", "/etc/passwd", "/proc/self/environ"])
def test_links_of_prompts_out_of_the_folder_are_not_read(make_run, precious, target):
    run = with_evaluation(make_run(), prompts="training_prompts.txt")
    (run / "pipeline" / "training_prompts.txt").symlink_to(precious if target == "file" else target)
    with pytest.raises(ValueError, match="not in its folder"):
        own_prompts([read_run(run)])


@pytest.mark.slow
def test_the_demo_reads_no_prompts_outside(make_run, monkeypatch):
    run = with_evaluation(make_run(), prompts="/etc/passwd")
    with pytest.raises(ValueError, match="not in its folder"):
        Demo([run], torch.device("cpu"), "float32")


def test_prompts_in_the_folder_are_read_and_equal_ones_are_shared(make_run):
    runs = [with_evaluation(make_run(name), prompts="training_prompts.txt") for name in ("a", "b")]
    for run in runs:
        (run / "pipeline" / "training_prompts.txt").write_text("a coat\na dress\n")
    assert own_prompts([read_run(run) for run in runs]) == str(runs[0] / "pipeline" / "training_prompts.txt")
    (runs[1] / "pipeline" / "training_prompts.txt").write_text("a bag\n")
    with pytest.raises(ValueError, match="select one with --prompts"):
        own_prompts([read_run(run) for run in runs])


def test_records_that_are_links_out_of_the_folder_are_refused(make_run, tmp_path):
    run = make_run()
    record = run / "pipeline" / "distill.json"
    record.rename(tmp_path / "elsewhere.json")
    record.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match=r"distill\.json must be a file, got a link to a file outside"):
        read_run(run)


@pytest.mark.parametrize("source", ["/", "..", "../..", "."])
def test_references_that_contain_the_run_are_refused(make_run, monkeypatch, source):
    run = with_evaluation(make_run(), reference=source)
    monkeypatch.chdir(run / "pipeline")
    with pytest.raises(ValueError, match=r"the reference in .*distill\.json must be an \.npz or a folder of images"):
        read_run(run)


def test_curves_are_not_read_through_links(make_run, precious):
    run = make_run()
    line = {"step": 1, "seconds": 1.0, "fake_score/loss": 1.0}
    precious.write_text("".join(json.dumps(line | {"seconds": i}) + "\n" for i in range(3)))
    assert len(curves([read_run(run)])) == 0
    (run / "log.jsonl").symlink_to(precious)
    assert curves([read_run(run)]) == []


@pytest.mark.parametrize("name", ["../secret", "sub/../../secret", "{absolute}"])
def test_contents_of_a_record_are_not_compared_with_files_outside(tmp_path, name):
    (tmp_path / "secret").write_text(PRECIOUS)
    (tmp_path / "teacher").mkdir()
    named = name.format(absolute=tmp_path / "secret")
    digest = hashlib.sha256(PRECIOUS.encode()).hexdigest()
    assert changed_files(tmp_path / "teacher", {named: digest}) == [named]


@pytest.mark.parametrize("place", ["x.txt", "unet/x.safetensors", "folder"])
def test_uploads_never_follow_links_out_of_the_folder(tmp_path, precious, monkeypatch, place):
    pipeline = tmp_path / "run" / "pipeline"
    (pipeline / place).parent.mkdir(parents=True)
    (pipeline / place).symlink_to(precious.parent if place == "folder" else precious)
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: pytest.fail("nothing is created"))
    with pytest.raises(ValueError, match="is a link out of the folder or a special file; remove it before the upload"):
        push(pipeline, "owner/name", private=False)


def test_links_inside_a_folder_and_to_the_blobs_of_the_hub_are_inside(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "1").write_text("x")
    (snapshot / "file").write_text("x")
    (snapshot / "inner").symlink_to("file")
    (snapshot / "blob").symlink_to("../../blobs/1")
    assert is_inside(snapshot / "inner", snapshot) and is_inside(snapshot / "blob", snapshot)
    assert outside_links(snapshot) == []
    (snapshot / "other").symlink_to(tmp_path)
    (tmp_path / "models--a--b" / "blobs" / "2").symlink_to("/etc/passwd")
    (snapshot / "chain").symlink_to("../../blobs/2")
    assert outside_links(snapshot) == [snapshot / "chain", snapshot / "other"]


def test_copying_a_recipe_does_not_follow_a_broken_link(tmp_path, precious, capsys):
    (tmp_path / "dmd.yaml").symlink_to(precious.parent / "new")
    assert fewstep("recipes", "copy", "pocket/dmd", tmp_path / "dmd.yaml") == 2
    assert "already exists" in capsys.readouterr().err and unchanged(precious)


def test_waiting_for_a_link_at_the_lock_is_refused(tmp_path, precious):
    (tmp_path / ".lock").symlink_to(precious)
    with pytest.raises(ValueError, match="cannot be written"), lock_folder(tmp_path, "--out", "choose another"):
        pass
    assert unchanged(precious)


@pytest.mark.slow
def test_exported_pipelines_hold_a_copy_of_their_evaluation_prompts(recipe, tmp_path, monkeypatch):
    prompts = tmp_path / "mine.txt"
    prompts.write_text("a coat\n\na  dress\n")
    run = recipe("train.steps=1", f"evaluation.prompts={prompts}")
    pipeline = train(run)
    assert json.loads((pipeline / "distill.json").read_text())["evaluation"]["prompts"] == EVALUATION_PROMPTS
    prompts.unlink()
    assert read_inputs(Options([run.folder], tmp_path / "out", samples=2)).prompts == ["a coat", "a dress"]
    uploads = []
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: RepoUrl("https://huggingface.co/o/n"))
    monkeypatch.setattr(HfApi, "upload_folder", lambda *_, **options: uploads.append(options["ignore_patterns"]))
    export_and_push(run.folder, "o/n", True, None)
    assert EVALUATION_PROMPTS in uploads[0]
