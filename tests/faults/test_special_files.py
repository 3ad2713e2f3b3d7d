"""FIFOs, sockets, devices and folders in the places of files: each reader refuses them at once and names them."""

import json
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from distill.cli import fewstep as group
from distill.config.shipped import recipe_file
from distill.data import shards
from distill.data.hf_datasets import HFImages
from distill.data.images import ImageFolder
from distill.sample import stored_call
from distill.training import checkpoint
from distill.training.best import best_record, load_best
from distill.training.export_record import EXPORTED, is_exported
from distill.training.jsonl_log import JsonlLog, held_out_records
from distill.training.outcome import failed_before
from eval.config.protocol import read_protocol
from eval.features.extractors import extractor
from eval.features.image_folder import features_of_folder, image_warnings
from eval.features.inception import resolve_weights
from eval.metrics.reference import reference
from eval.pipelines import cache
from eval.pipelines.runs import read_run
from eval.pipelines.signatures import pipeline_class
from eval.report.training_log import curves
from teachers.loading.contents import pipeline_contents
from teachers.loading.location import local_or_hub
from teachers.loading.prompts import read_prompts
from teachers.loading.source import check_weights, class_name
from teachers.media.audio import Audio
from teachers.media.video import Video
from teachers.support.files import atomic_write, sha256_file
from teachers.support.images import image_header, read_as_clean_fid, read_for_training
from teachers.support.keys import file_content, key
from teachers.support.regular import check_regular, open_regular
from teachers.support.text import read_lines, read_text
from teachers.support.yaml_files import read_yaml
from tests.commands import eval_main, fewstep

KINDS = ("FIFO", "socket", "device", "folder", "link to a FIFO")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A reader that waits is interrupted."""

    def stop(*_: object) -> None:
        raise TimeoutError("the reader waits for a special file")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def make_special(path: Path, kind: str) -> Path:
    """Put a file of a kind at `path`, instead of what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o666)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path.with_name(f"{path.name}.fifo"))
        path.symlink_to(path.with_name(f"{path.name}.fifo"))
    return path


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "open": ("x", open_regular),
    "text": ("x.txt", read_text),
    "lines": ("x.txt", read_lines),
    "hash": ("x", sha256_file),
    "content": ("x", file_content),
    "key": ("x", lambda path: key(path) and check_regular(path)),
    "yaml": ("x.yaml", read_yaml),
    "recipe": ("x.yaml", recipe_file),
    "protocol": ("x.yaml", read_protocol),
    "prompts": ("x.txt", lambda path: read_prompts(str(path))),
    "table of prompts": ("x.jsonl", lambda path: read_prompts(str(path))),
    "csv of prompts": ("x.csv", lambda path: read_prompts(str(path))),
    "parquet of prompts": ("x.parquet", lambda path: read_prompts(str(path))),
    "image for training": ("x.png", lambda path: read_for_training(path, str(path))),
    "array for training": ("x.npy", lambda path: read_for_training(path, str(path))),
    "image for evaluation": ("x.png", read_as_clean_fid),
    "clip": ("x.mp4", Video(frames=2, height=8, width=8, rate=8).read),
    "sound": ("x.wav", Audio(channels=1, samples=100, rate=8000).read),
    "image header": ("x.png", lambda path: image_header(path).__enter__()),
    "single file of weights": ("x.safetensors", lambda path: local_or_hub(str(path))),
    "Inception weights": ("x.pt", resolve_weights),
    "dataset": ("x.tar", lambda path: HFImages(str(path), True, None, False, 0)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.first_is_quick
def test_named_special_files_are_refused(tmp_path, kind, reader):
    name, read = READERS[reader]
    path = make_special(tmp_path / name, kind)
    if (reader, kind) in {("key", "folder"), ("single file of weights", "folder"), ("dataset", "folder")}:
        return  # folders are expected there
    with pytest.raises((ValueError, OSError), match=r"x[.\w]* .*(must be a regular file|cannot be read)") as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_special_files_as_references_are_refused(tmp_path, kind):
    path = make_special(tmp_path / "x.npz", kind)
    with pytest.raises(ValueError, match=r"x\.npz"):
        reference(str(path), extractor("pixels", CPU))


FOLDER_MEMBERS = {
    "image": ("a.png", False),
    "caption": ("b.txt", True),
    "metadata": ("metadata.jsonl", True),
    "metadata as csv": ("metadata.csv", True),
}


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device"])
@pytest.mark.parametrize("member", FOLDER_MEMBERS)
def test_special_files_in_folders_of_images_are_refused(tmp_path, kind, member):
    name, captioned = FOLDER_MEMBERS[member]
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    make_special(tmp_path / name, kind)
    with pytest.raises((ValueError, OSError), match=rf"{name}.*must be a regular file, got a "):
        ImageFolder(tmp_path, captioned)
    if member == "image":
        assert image_warnings(tmp_path) == []
        with pytest.raises(ValueError, match=r"a\.png.*must be a regular file"):
            features_of_folder(tmp_path, extractor("pixels", CPU))


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device"])
@pytest.mark.parametrize(
    "name",
    ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json", "x"],
)
def test_special_files_in_pipelines_are_refused_before_they_are_loaded(tmp_path, kind, name):
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    make_special(tmp_path / name, kind)
    for read in (
        lambda: local_or_hub(str(tmp_path)) and class_name(str(tmp_path)),
        lambda: check_weights(str(tmp_path)),
    ):
        with pytest.raises((ValueError, OSError), match="must be a regular file, got a "):
            read()
    with pytest.raises((ValueError, OSError)):
        pipeline_contents(str(tmp_path), whole=True)
    if name == "model_index.json":
        with pytest.raises(ValueError, match=r"model_index\.json"):
            pipeline_class(tmp_path)


def state(step: int) -> checkpoint.Checkpoint:
    return checkpoint.Checkpoint(
        {"a": torch.ones(4)}, {"b": torch.ones(4)}, {"student": {}}, {"step": step, "fingerprint": {"a": "b"}}
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["meta.json", "manifest.json", "weights.safetensors", "ema.safetensors", "optimizers.pt"]
)
@pytest.mark.first_is_quick
def test_checkpoints_with_special_files_are_damaged(tmp_path, kind, name):
    for step in (1, 2):
        checkpoint.save(tmp_path, state(step), keep=2)
    make_special(tmp_path / "00000002" / name, kind)
    assert checkpoint.newest_meta(tmp_path)["step"] == (1 if name in ("meta.json", "manifest.json") else 2)
    with pytest.warns(UserWarning, match="is damaged"):
        checkpoint.quarantine_damaged(tmp_path)
    assert checkpoint.load_newest(tmp_path).meta["step"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_records_of_runs_that_are_special_files_count_as_missing(tmp_path, kind):
    checkpoint.save(tmp_path / "checkpoints", state(1), keep=1)
    for name in (EXPORTED, "failed.json", "history.jsonl", "checkpoints/best/ema.safetensors"):
        make_special(tmp_path / name, kind)
    assert not is_exported(tmp_path, "x", 1)
    assert failed_before(tmp_path, "x") is None
    assert held_out_records(tmp_path / "history.jsonl", "x") == []
    assert best_record(tmp_path / "checkpoints", "x") is None
    with pytest.warns(UserWarning, match="is damaged"):
        assert load_best(tmp_path / "checkpoints") is None


@pytest.mark.parametrize("kind", KINDS)
def test_logs_that_are_special_files_cost_the_record_and_a_warning(tmp_path, kind):
    path = make_special(tmp_path / "log.jsonl", kind)
    log = JsonlLog(path, 0)
    with pytest.warns(UserWarning, match=r"a record could not be written to .*log\.jsonl"):
        log.append({"step": 1})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["figures.json", "features.safetensors", "images.png"])
def test_rows_of_the_cache_with_special_files_are_measured_again(tmp_path, kind, name):
    images = torch.rand(2, 3, 8, 8)
    result = cache.Result({}, torch.rand(2, 3), torch.rand(3).double(), torch.eye(3).double(), images)
    cache.save(tmp_path, "row", result)
    assert cache.load(tmp_path, "row") is not None
    make_special(tmp_path / "row" / name, kind)
    assert cache.load(tmp_path, "row") is None


@pytest.mark.parametrize("kind", KINDS)
def test_shards_that_are_special_files_are_not_valid(tmp_path, kind):
    assert not shards.is_valid(make_special(tmp_path / "x.safetensors", kind), "key")


@pytest.mark.parametrize("kind", KINDS)
def test_special_files_as_records_of_pipelines_are_refused(make_run, kind):
    run = make_run()
    make_special(run / "pipeline" / "distill.json", kind)
    with pytest.raises((ValueError, OSError), match=r"distill\.json"):
        read_run(run)
    with pytest.raises((ValueError, OSError), match=r"distill\.json"):
        stored_call(run / "pipeline", None)


@pytest.mark.parametrize("kind", KINDS)
def test_curves_of_special_files_are_left_out(make_run, kind):
    run = make_run()
    for name in ("history.jsonl", "log.jsonl"):
        make_special(run / name, kind)
    assert curves([read_run(run)]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_commands_report_special_files_in_one_sentence(tmp_path, capsys, kind):
    path = make_special(tmp_path / "x.yaml", kind)
    commands = (["train", path], ["train", "pocket/dmd", "--config", path], ["memory", path], ["recipes", "show", path])
    for words in commands:
        assert fewstep(*words) == 2
        assert "x.yaml must be a regular file, got a " in capsys.readouterr().err
    assert eval_main([str(tmp_path), "--protocol", str(path)]) == 2
    assert "x.yaml must be a regular file, got a " in capsys.readouterr().err
    assert group.name == "fewstep"


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device", "link to a FIFO"])
def test_outputs_never_replace_special_files(tmp_path, kind):
    path = make_special(tmp_path / "out.json", kind)
    before = path.lstat()
    with pytest.raises(ValueError, match=r"out\.json must be a file or a folder, got a "), atomic_write(path):
        pass
    assert os.path.samestat(path.lstat(), before)


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/null", "/dev/new-name", "/proc/self/fd/1", "/dev/fd/1"])
def test_outputs_are_no_names_in_dev_or_proc(path):
    with pytest.raises(ValueError, match="must be a file or a folder, got a name in"), atomic_write(Path(path)):
        raise AssertionError("nothing is written")


def test_process_substitution_is_refused_with_a_sentence():
    reading, writing = os.pipe()
    try:
        with pytest.raises(ValueError, match=rf"/dev/fd/{reading} must be a regular file, got a FIFO"):
            read_prompts(f"/dev/fd/{reading}")
    finally:
        os.close(reading)
        os.close(writing)


def test_files_of_the_kernel_do_not_block():
    """Some look like regular files and wait at each read."""
    for name in ("/proc/kmsg", "/sys/kernel/debug/tracing/trace_pipe"):
        try:
            read_text(Path(name))
        except (OSError, ValueError):
            continue


def test_errors_while_a_file_is_read_name_it():
    with pytest.raises(OSError, match="/proc/self/mem"):  # its first page is not mapped
        read_text(Path("/proc/self/mem"))


def test_folders_with_links_to_themselves_are_hashed(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    for name in ("a", "b", "c"):  # each path through them is another one: exponentially many
        (tmp_path / "unet" / name).symlink_to(tmp_path / "unet")
    (tmp_path / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DModel"]}))
    assert set(pipeline_contents(str(tmp_path))) == {"model_index.json", "unet/config.json"}
