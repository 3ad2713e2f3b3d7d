"""The model card of an export, and what publishing it does to it."""

import json
import shutil
import wave
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from huggingface_hub import ModelCard
from transformers import CLIPConfig, CLIPImageProcessor

from distill.config.recipe import Recipe, load
from distill.config.registry import TEACHERS, find
from distill.config.sections import DataRecipe, TeacherRecipe
from distill.export import export_and_push
from distill.exporting.card import model_card
from distill.exporting.formats import Form, convert
from distill.exporting.hub import EVALUATION, find_report, push
from distill.exporting.model_card.front_ends import MARKER, PLACEHOLDER, TEACHER, FrontEnd, located, named
from distill.exporting.model_card.gallery import NEUTRAL, draw, gallery_prompts, write
from distill.exporting.model_card.metadata import front_matter, teacher_metadata
from distill.exporting.safety import ABSENT, DROPPED, KEPT, add_safety_checker
from distill.train import train
from eval.compare import compare
from tests.settings import FAST
from tests.teachers.fine_tunes import adapted, write_diffusers

SD = "Stable Diffusion 1.5"
TEACHER_CARD = "---\nlicense: creativeml-openrail-m\nbase_model: owner/base\n---\n# A teacher\n"


@pytest.fixture
def teacher(folder_of, tmp_path):
    """The folder of a Stable Diffusion pipeline with a safety checker and a model card."""
    folder = tmp_path / "teacher"
    shutil.copytree(folder_of(SD)[1], folder)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = sizes | {"image_size": 32, "patch_size": 16, "projection_dim": 8}
    config = CLIPConfig(text_config=sizes, vision_config=vision, projection_dim=8)
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(config)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    checker.save_pretrained(folder / "safety_checker")
    processor.save_pretrained(folder / "feature_extractor")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "README.md").write_text(TEACHER_CARD)
    return folder


@pytest.fixture
def exported(teacher, tmp_path):
    """exported(*overrides): the pipeline of a run of one step."""
    (tmp_path / "prompts.txt").write_text("a coat\na boot\n")

    def make(*overrides) -> Path:
        file = tmp_path / "recipe.yaml"
        file.write_text(
            f"name: run\noutput: {tmp_path / 'runs'}\ndata: {{prompts: {tmp_path / 'prompts.txt'}}}\n"
            f"method: {{name: dmd}}\nteacher: {{path: {teacher}, guidance: 2.0, num_steps: 2}}\n"
        )
        few = ["train.batch_size=2", "train.steps=1", "train.evaluate_samples=2", "train.evaluate_teacher_steps=1"]
        return train(load(file, [*FAST, *few, *overrides]))

    return make


@pytest.mark.slow
def test_card_has_origin_licence_gallery_and_the_safety_checker(exported, teacher):
    folder = exported()
    text = (folder / "README.md").read_text()
    card = ModelCard(text)
    data = card.data
    assert (data.license, data.base_model, data.base_model_relation) == (
        "creativeml-openrail-m",
        "owner/base",
        "finetune",
    )
    assert data.pipeline_tag == "text-to-image" and data.library_name == "diffusers"
    assert len(data.widget) == 4
    for widget in data.widget:
        assert (folder / widget["output"]["url"]).is_file() and widget["text"]
        assert "coat" not in widget["text"]  # training prompts may be confidential
    assert "<Gallery />" in text and "creativeml-openrail-m, the licence of the base model (`owner/base`)" in text
    assert "guidance 2 is part of the weights" in text and "`negative_prompt` of a call has no effect" in text
    assert "# 1 network evaluation(s); negative_prompt has no effect" in text
    assert "2 prompts" in text and "1 steps, 2 samples" in text
    assert "safety checker of the teacher is part of the pipeline" in text
    pipe = DiffusionPipeline.from_pretrained(folder)
    original = StableDiffusionPipeline.from_pretrained(teacher).safety_checker.state_dict()
    assert pipe.config.requires_safety_checker and pipe.feature_extractor is not None
    assert all(torch.equal(value, original[key]) for key, value in pipe.safety_checker.state_dict().items())
    convert(folder, folder.parent / "half", "diffusers", Form(half=True))
    half = StableDiffusionPipeline.from_pretrained(folder.parent / "half", variant="fp16", torch_dtype=torch.float16)
    assert half.config.requires_safety_checker and half.feature_extractor is not None
    assert all(torch.equal(value, original[key].half()) for key, value in half.safety_checker.state_dict().items())


@pytest.mark.slow
def test_dropped_safety_checker_and_baked_negative_prompt_are_said(exported, teacher, tmp_path, capsys):
    tuned = adapted(DiffusionPipeline.from_pretrained(teacher, safety_checker=None), encoders=False)
    file = write_diffusers(tuned, tmp_path / "style")
    folder = exported(
        "export.safety_checker=false",
        "teacher.negative_prompt=blurry `x`",
        f"teacher.loras=[{{path: {file}, scale: 0.5}}]",
        "memory.tier=lora",
        "memory.rank=2",
        "teacher.precision=float32",
    )
    text, out = (folder / "README.md").read_text(), capsys.readouterr().out
    assert "safety checker of the teacher is not part of this pipeline** (`export.safety_checker: false`)" in text
    assert "no safety checker" in out and "has no effect (teacher.negative_prompt is part of the weights)" in out
    assert "with the negative prompt `blurry 'x'`" in text and f"with `{file}` at 0.5" in text
    assert DiffusionPipeline.from_pretrained(folder).safety_checker is None
    assert "set_adapters(['tune1', 'few_step'], [0.5, 1.0])" in text
    (code,) = [block for block in text.split("```python\n")[1:] if "set_adapters" in block]
    code = code.split("```")[0].replace(PLACEHOLDER, str(folder)).replace("a photo of ...", "a coat")
    code = code.replace(".from_pretrained('", ".from_pretrained(safety_checker=None, pretrained_model_name_or_path='")
    names: dict = {"torch": torch}
    seeded = "pipe('a coat', generator=torch.Generator().manual_seed(0), output_type='np',"
    exec(code.replace("pipe('a coat',", seeded), names)
    pipe = DiffusionPipeline.from_pretrained(folder)
    call = json.loads((folder / "distill.json").read_text())["calls"][0]["call"]
    images = pipe("a coat", generator=torch.Generator().manual_seed(0), output_type="np", **call).images
    assert abs(names["images"] - images).max() < 1e-3


@pytest.fixture
def published(make_run, tmp_path):
    """A run with an evaluation whose report names its folder relative to another directory."""
    run = make_run()
    card = f"---\nlibrary_name: diffusers\n---\n\n# student\n\n```python\nx({PLACEHOLDER!r})\n```\n\n"
    (run / "pipeline" / "README.md").write_text(card + MARKER.format(PLACEHOLDER) + "\n")
    for file in (run / "pipeline").rglob("*"):
        if file.is_symlink():
            content = file.resolve().read_bytes()
            file.unlink()
            file.write_bytes(content)
    return run


@pytest.mark.exhaustive
def test_figures_survive_another_directory_a_second_time_and_a_move(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "runs")
    report = Path("report")
    compare([Path("student")], report, samples=4, batch_size=4, command="fewstep eval", few_steps=(1,))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    pipeline = published / "pipeline"

    def figures(folder):
        text = (folder / "README.md").read_text()
        assert text.count("## Evaluation") == 1 and text.endswith(MARKER.format(PLACEHOLDER) + "\n")
        return {result.metric_type: result.metric_value for result in ModelCard(text).data.eval_results}

    export_and_push(Path("../runs/student"), None, False, None)
    first = figures(pipeline)
    assert "frechet_distance" in first and "(" in (pipeline / "README.md").read_text().split("| student, 1 step")[1]
    export_and_push(published, None, False, None)
    assert figures(pipeline) == first
    moved = shutil.move(published, tmp_path / "elsewhere" / "moved")
    shutil.rmtree(tmp_path / "runs" / "report")
    export_and_push(Path(moved), None, False, None)
    assert figures(Path(moved) / "pipeline") == first
    alone = shutil.copytree(Path(moved) / "pipeline", tmp_path / "alone")
    export_and_push(alone, None, False, None)
    assert figures(alone) == first and (alone / EVALUATION).is_file()
    record = alone / "distill.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"name": "other"}))
    assert find_report(alone, None) is None


class Hub:
    """Stands for the Hub's client."""

    def __init__(self, fails=False):
        self.fails, self.uploads = fails, []

    def create_repo(self, name, **options):
        return SimpleNamespace(repo_id=name if "/" in name else f"me/{name}")

    def upload_folder(self, repo_id, folder_path, **options):
        if self.fails:
            raise RuntimeError("interrupted")
        self.uploads.append((Path(folder_path) / "README.md").read_text())


def test_code_of_an_uploaded_card_names_the_model(published):
    pipeline, hub = published / "pipeline", Hub()
    push(pipeline, "student", False, hub)
    push(pipeline, "other/name", False, hub)
    assert "x('me/student')" in hub.uploads[0] and PLACEHOLDER not in hub.uploads[0]
    assert "x('other/name')" in hub.uploads[1] and "me/student" not in hub.uploads[1]
    with pytest.raises(ValueError, match="interrupted"):
        push(pipeline, "third/name", False, Hub(fails=True))
    assert "x('other/name')" in (pipeline / "README.md").read_text()
    assert located("no marker\n", "me/x") == "no marker\n"


def record_of(path, times, calls):
    """The contents of a distill.json."""
    return {
        "name": "student: [x]",
        "version": "1",
        "method": "dmd",
        "options": {},
        "teacher": {"path": path, "call": {}},
        "times": times,
        "calls": calls,
        "cost": {"steps": 3, "exported_step": 2, "seconds": 5.0, "samples": 6, "device": "cpu"},
    }


@pytest.mark.parametrize("name", [SD, "DiT", "unconditional UNet", "EDM, ImageNet-64", "Playground 2.5"])
@pytest.mark.first_is_quick
def test_cards_of_every_kind_of_prompt(teacher_of, name):
    teacher = teacher_of(name)
    path = teacher.denoiser.path
    kind = type(teacher.pipeline(teacher.student(), [path.t_max]))
    record = record_of("owner/teacher", [path.t_max], [{"num_steps": 1, "call": teacher.calls(1)}])
    text = model_card(record, kind, "LCMScheduler", teacher)
    data = ModelCard(text).data
    assert data.base_model == "owner/teacher" and data.pipeline_tag.endswith(("text-to-image", "image-generation"))
    assert "A 1-step student of" in text and "distilled with DMD by fewstep 1." in text
    two = [*record["calls"], {"num_steps": 2, "call": teacher.calls(2)}]
    text = model_card(record | {"method": "scm", "calls": two}, kind, "LCMScheduler", teacher)
    assert "A 1- or 2-step student of" in text and "distilled with sCM by" in text and "samples in 1 or 2 steps" in text
    assert text.count("```") % 2 == 0 and "do not name its licence" in text and "EMA of step 2" in text


def test_code_of_a_front_end_cannot_end_its_block():
    front_end = FrontEnd("ComfyUI", "text", "steps 1, cfg 1.0\n```\nsampler lcm", "Load `model.safetensors`.")
    expected = "### ComfyUI\n\n```text\nsteps 1, cfg 1.0\n'''\nsampler lcm\n```\n\nLoad `model.safetensors`.\n"
    assert front_end.section() == expected


def test_cards_of_teachers_that_cannot_be_read_give_nothing(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    assert teacher_metadata(str(tmp_path)) == {} and teacher_metadata("nobody/nothing") == {}
    for text in ("", "---\n[1, 2\n---\n", "---\n- a\n---\n", "# no front matter\n", "---\nlicense: mit\n"):
        (tmp_path / "README.md").write_text(text)
        assert teacher_metadata(str(tmp_path)) == {}
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: x-1\ntags: [y]\n---\n")
    assert teacher_metadata(str(tmp_path)) == {"license": "other", "license_name": "x-1"}
    assert teacher_metadata("pocket")["license"] == "apache-2.0"
    assert front_matter("---\na: 1\n---\nbody") == {"a": 1}


def test_names_that_contain_the_models_are_kept():
    assert named("no marker") == PLACEHOLDER
    card = f'from_pretrained("me/x")\nbase: me/x-large, other/me/x, me/x/file\n{MARKER.format("me/x")}\n'
    assert named(card) == "me/x"
    expected = f'from_pretrained("a/b")\nbase: me/x-large, other/me/x, a/b/file\n{MARKER.format("a/b")}\n'
    assert located(card, "a/b") == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ending", "tag"), [("Wan 2.1", ".webp", "text-to-video"), ("Stable Audio", ".wav", "text-to-audio")]
)
def test_cards_of_clips_and_sounds_have_samples_that_play(tiny_media, tmp_path, name, ending, tag):
    family, folder, size = tiny_media(name)
    kind = find(TEACHERS, family)
    teacher = kind.load(str(folder), torch.device("cpu"), **kind.size_argument(size))
    recipe = Recipe("run", TeacherRecipe(path=None, family=family), {"name": "dmd"})
    times = [teacher.denoiser.path.t_max]
    widgets = write(draw(recipe, teacher, teacher.student(), times), teacher.medium, tmp_path)
    assert len(widgets) == 1 and widgets[0]["output"]["url"].endswith(ending)
    file = tmp_path / widgets[0]["output"]["url"]
    if ending == ".wav":
        with wave.open(str(file)) as sound:
            assert sound.getnframes() == teacher.medium.samples
    else:
        assert teacher.medium.read(file).values.shape == teacher.medium.shape
    record = record_of("owner/teacher", times, [{"num_steps": 1, "call": teacher.calls(1, times)}])
    pipeline = kind.pipelines[0]
    text = model_card(record, pipeline, "Scheduler", teacher, widgets=widgets)
    data = ModelCard(text).data
    assert data.pipeline_tag == tag and data.widget[0]["output"] == widgets[0]["output"]
    assert f"Each sample has {teacher.medium.size}" in text and "<Gallery />" in text
    assert "images" not in text.partition("## Limits")[0] and "photo" not in text
    prompts = gallery_prompts(Recipe("run", TeacherRecipe(), {"name": "dmd"}), teacher)
    assert prompts and not {*prompts} & {*NEUTRAL}
    nameless = record | {"teacher": record["teacher"] | {"path": None}, "lora": LORA_RECORD}
    text = model_card(nameless, pipeline, "Scheduler", teacher, widgets=widgets)
    assert "student of a teacher in memory, distilled" in text and "None" not in text
    assert f"{pipeline.__name__}.from_pretrained('{TEACHER}')" in text


LORA_RECORD = {"folder": "lora", "calls": [{"num_steps": 1, "call": {"num_inference_steps": 1}}]}


@pytest.mark.parametrize(
    ("teacher_path", "data", "word"),
    [
        ("pocket", DataRecipe(), "t-shirt"),
        (None, DataRecipe(prompts="pocket-video"), "moving left"),
        (None, DataRecipe(images="pocket"), "t-shirt"),
        (None, DataRecipe(), "fox"),
    ],
)
@pytest.mark.first_is_quick
def test_samples_of_embedded_teachers_have_prompts_that_they_know(teacher_of, teacher_path, data, word):
    recipe = Recipe("run", TeacherRecipe(path=teacher_path), {"name": "dmd"}, data=data)
    assert any(word in prompt.lower() for prompt in gallery_prompts(recipe, teacher_of(SD)))
    assert gallery_prompts(recipe, teacher_of("unconditional UNet")) is None


@pytest.mark.slow
def test_safety_checker_of_a_pipeline_in_memory_is_kept_too(teacher, folder_of, tmp_path):
    pipe = StableDiffusionPipeline.from_pretrained(teacher)
    wrapped = find(TEACHERS, "stable_diffusion").wrap(pipe)
    plain = shutil.copytree(folder_of(SD)[1], tmp_path / "plain")
    assert add_safety_checker(wrapped, plain, keep=False) == DROPPED and not (plain / "safety_checker").exists()
    assert add_safety_checker(wrapped, plain, keep=True) == KEPT
    stored = StableDiffusionPipeline.from_pretrained(plain).safety_checker.state_dict()
    assert all(torch.equal(value, stored[key]) for key, value in pipe.safety_checker.state_dict().items())
    loaded = find(TEACHERS, "stable_diffusion").load(str(folder_of(SD)[1]), torch.device("cpu"))
    assert add_safety_checker(loaded, plain, keep=True) == ABSENT
