"""The console script: quick help, one-line errors, recipes by name, and working directories that shadow nothing."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from distill.cli import fewstep as group
from distill.config.shipped import accelerate_file, shipped
from distill.training import launch
from tests.commands import fewstep
from tests.faults import ends
from tests.forks import Fork
from tests.settings import FAST, ROOT

COMMANDS = (
    "train",
    "eval",
    "sample",
    "export",
    "check",
    "pairs",
    "encode",
    "memory",
    "describe",
    "families",
    "demo",
    "quickstart",
    "recipes",
    "status",
)
SCRIPT = Path(sys.executable).with_name("fewstep")


def script(*words: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPT), *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=os.environ | environment, timeout=280
    )


@pytest.fixture
def hostile(tmp_path) -> Path:
    """A working directory whose files have the names of this project's packages."""
    for name in ("eval.py", "distill.py", "teachers.py", "recipes/__init__.py"):
        (tmp_path / "cwd" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cwd" / name).write_text("raise SystemExit('a file of the working directory was imported')\n")
    return tmp_path / "cwd"


def test_every_command_is_there():
    assert set(COMMANDS) == set(group.commands)


@pytest.fixture(scope="module")
def compiled() -> None:
    """The bytecode of the modules that help needs, which the first command after an installation compiles."""
    script("eval", "images", "--help", PYTHONDONTWRITEBYTECODE="")


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS), ("recipes", "list"), ("eval", "images")])
def test_help_is_quick_and_loads_no_torch(words):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = script(*words, "--help", PYTHONPROFILEIMPORTTIME="1")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and done.stdout.startswith("Usage: fewstep")
    assert "| torch" not in done.stderr and "| diffusers" not in done.stderr
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 0.5, f"{seconds:.2f} seconds of processor time"


@pytest.mark.slow
def test_status_is_quick_and_loads_no_torch(tmp_path):
    values = {"run": "a", "phase": "finished", "step": 2, "steps": 2, "hours_trained": 0.1, "process": 1, "host": "b"}
    values["held_out_frechet"] = {"1": 0.5, "2": None}
    (tmp_path / "status.json").write_text(json.dumps(values))
    done = script("status", tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert done.stdout.endswith("held-out Frechet distance 0.500 (1 step), not finite (2 steps)\n")
    assert "| torch" not in done.stderr and "| diffusers" not in done.stderr


@pytest.mark.parametrize(
    "name", ["train", "eval", "sample", "export", "check", "pairs", "memory", "describe", "demo", "quickstart"]
)
def test_help_has_examples(name, capsys):
    assert fewstep(name, "--help") == 0
    assert f"fewstep {name}" in capsys.readouterr().out.partition("Example")[2]


def test_usage_errors_have_code_2(capsys):
    assert fewstep("train") == 2
    assert "Missing argument 'RECIPE'" in capsys.readouterr().err
    assert fewstep("sample", "run", "--count", "many") == 2
    assert fewstep("nonsense") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "pocket/dm"), "there is no recipe pocket/dm, did you mean 'pocket/dmd'?"),
        (("train", "dmd"), "there is no recipe dmd, did you mean 'pocket/dmd'?"),
        (("train", "LCM.yaml"), "there is no recipe LCM.yaml, did you mean 'pocket/lcm'?"),
        (("memory", "sdxl"), "there is no recipe sdxl, did you mean 'sdxl_dmd2_lora'?"),
        (("memory", "wan21"), "did you mean 'wan21_1_3b_dmd', 'wan21_1_3b_rcm' or 'wan21_1_3b_scm'?"),
        (("train", "pocket/dmd", "train.stesp=3"), "unknown key 'train.stesp', did you mean 'steps'?"),
        (("train", "pocket/dmd", "train.steps"), "an override must have the form key=value"),
        (("train", "pocket/dmd", "--config", "dpd"), "--config must be a file or one of ddp"),
        (("memory", "pocket/dmd", "train.batch_size=0"), "train.batch_size must be at least 1, got 0"),
        (("memory", "pocket/dmd", "--config", "dpd"), "--config must be a file or one of ddp"),
        (("recipes", "show", "nothing"), "there is no recipe nothing"),
    ],
)
def test_errors_are_one_sentence(words, message, capsys):
    assert fewstep(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_dry_run_refuses_several_processes(capsys):
    assert fewstep("train", "pocket/dmd", "--dry-run", "--num-processes", "2") == 2
    assert "--dry-run measures one process" in capsys.readouterr().err


@pytest.mark.parametrize(("config", "parts"), [("ddp", "each of 4 processes"), ("fsdp2", "each of 4 processes")])
@pytest.mark.exhaustive
def test_memory_plans_several_processes(config, parts, capsys):
    assert fewstep("memory", "pocket/dmd", "--config", config, "--num-processes", "4") == 0
    printed = capsys.readouterr().out
    assert parts in printed and "communication" in printed and ("lora" in printed) == (config == "ddp")


@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_number_of_processes_must_be_positive(count, capsys):
    assert fewstep("train", "pocket/dmd", "--num-processes", count) == 2
    assert "Invalid value for '--num-processes'" in capsys.readouterr().err


def test_launcher_configuration_that_is_not_yaml_is_an_error(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("a: [")
    assert fewstep("train", "pocket/dmd", "--config", tmp_path / "a.yaml") == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/a.yaml is not valid YAML: ")


def test_recipe_whose_name_starts_with_a_dash_is_launched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fewstep("recipes", "copy", "pocket/dmd", "--", "-r.yaml")
    started = []
    monkeypatch.setattr(launch, "launch", lambda module, arguments, *_: started.append(arguments) or 0)
    assert fewstep("train", "--num-processes", "1", "--", "-r.yaml", "name=exp #2") == 0
    assert started == [[str(tmp_path / "-r.yaml"), "name=exp #2"]]


def test_recipes_are_listed_shown_and_copied(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fewstep("recipes", "list") == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(shipped()) and all(len(line.split()) > 3 for line in listed)
    assert fewstep("recipes", "show", "pocket/dmd") == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["name"] == "pocket-dmd"
    assert fewstep("recipes", "copy", "pocket/dmd") == 0
    assert (tmp_path / "dmd.yaml").read_text() == shown
    assert fewstep("recipes", "copy", "pocket/dmd") == 2
    assert "already exists" in capsys.readouterr().err
    assert fewstep("recipes", "copy", "pocket/dmd", "mine.png") == 2
    assert fewstep("recipes", "copy", "pocket/dmd", "new/folder/x.yaml") == 0
    assert (tmp_path / "new" / "folder" / "x.yaml").read_text() == shown
    assert fewstep("recipes", "copy", "pocket/dmd", "mine.yaml") == 0 and (tmp_path / "mine.yaml").is_file()


def test_every_key_is_documented(capsys):
    for words in ((), ("dmd",), ("sid",), ("f_distill",), ("scm",), ("rcm",), ("lcm",)):
        assert fewstep("recipes", "keys", *words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines and all(text.strip() for text in lines[1::2]), "a key has no documentation"


def launch_in(cwd: Path, *words: object) -> int:
    """`fewstep WORDS` in another working directory."""
    os.chdir(cwd)
    return fewstep(*words)


NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.slow
def test_a_shipped_recipe_trains_in_two_processes_in_a_hostile_directory(hostile, tmp_path, text_pipeline):
    overrides = [*FAST, "train.steps=2", f"teacher.path={text_pipeline}", f"output={tmp_path / 'runs'}"]
    words = ["train", "pocket/dmd", *overrides, "train.tracker=tensorboard", "--config", "two_cpu"]
    launched = Fork(tmp_path / "launcher", launch_in, hostile, *words, variables=NO_GPU)
    assert launched.wait(200) == 0, launched.error
    assert (tmp_path / "runs" / "pocket-dmd" / "pipeline" / "model_index.json").is_file()


@pytest.mark.exhaustive
def test_a_pipeline_is_evaluated_in_a_hostile_directory(hostile, tmp_path, text_pipeline):
    for number in range(4):
        Image.effect_noise((32, 32), 20 + number).convert("RGB").save(hostile / f"{number}.png")
    words = ["--steps", 1, "--samples", 4, "--features", "pixels", "--reference", hostile]
    words += ["--prompts", "pocket", "--out", tmp_path / "report"]
    done = script("eval", text_pipeline, *words, cwd=hostile)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report" / "report.html").is_file()


def launch_two(module: str, *words: str) -> int:
    return launch.launch(module, words, accelerate_file("two_cpu"), None)


def launch_two_without_a_configuration(module: str, *words: str) -> int:
    return launch.launch(module, words, None, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("start", "code"), [
    (launch_two, 2), (launch_two, 3), (launch_two, 130), (launch_two_without_a_configuration, 2)
])  # fmt: skip
def test_the_launcher_keeps_errors_of_two_processes_short(tmp_path, start, code):
    """The processes only end as `distill.train` does after an error, and do not import torch."""
    ended = Fork(tmp_path, start, ends.__name__, str(code), variables=NO_GPU | {"PYTHONPATH": str(ROOT)})
    assert ended.wait() == code
    assert ended.error == "error: this is one of 2 processes\n"


@pytest.mark.parametrize(("launcher", "is_main", "code"), [
    ({}, True, 130),
    ({"TORCHELASTIC_RUN_ID": "a"}, True, 0),
    ({"ACCELERATE_MIXED_PRECISION": "no"}, True, 0),
    ({"TORCHELASTIC_RUN_ID": "a", launch.LAUNCHED: "1"}, True, 130),
    ({"TORCHELASTIC_RUN_ID": "a", launch.LAUNCHED: "1"}, False, 0),
])  # fmt: skip
def test_only_our_launcher_gets_the_code_of_a_stop(launcher, is_main, code, monkeypatch):
    for name in (*launch.LAUNCHERS, launch.LAUNCHED):
        monkeypatch.delenv(name, raising=False)
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    assert launch.exit_code(signal.SIGINT, is_main) == code


@pytest.mark.slow
def test_a_dry_run_trains_nothing(tmp_path, capsys):
    output = tmp_path / "runs"
    recipe = ["pocket/dmd", "train.batch_size=4", "train.evaluate_samples=4", "train.evaluate_teacher_steps=2"]
    assert fewstep("train", *recipe, "train.tracker=none", f"output={output}", "--dry-run") == 0
    out = capsys.readouterr().out
    for part in (
        "batch_size: 4",
        "family     stable_diffusion",
        "memory plan in GiB",
        "seconds per step",
        "estimated total:",
    ):
        assert part in out, part
    assert not output.exists()


@pytest.mark.parametrize("module", ["distill.train", "eval", "teachers"])
@pytest.mark.exhaustive
def test_modules_run_as_scripts(module):
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith(f"Usage: python -m {module}"), done.stderr


def test_the_version_is_the_packages(capsys):
    assert fewstep("--version") == 0
    import distill

    assert distill.__version__ in capsys.readouterr().out


@pytest.mark.exhaustive
def test_a_report_names_the_command_that_made_it(make_run, tmp_path):
    run = make_run()
    assert fewstep("eval", run, "--out", tmp_path / "r", "--samples", 4, "--batch-size", 4, "--features", "pixels") == 0
    assert json.loads((tmp_path / "r" / "report.json").read_text())["command"]
