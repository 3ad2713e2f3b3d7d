"""`import distill` as a notebook uses it: lazily loaded names, and a UNet in memory that is distilled in ten lines."""

import importlib
import json
import subprocess
import sys

import pytest
import torch
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    EDMEulerScheduler,
    StableDiffusionPipeline,
    UNet2DModel,
)
from peft import LoraConfig

import distill
from distill.training import setup
from tests.forks import Fork

SMALL = {"block_out_channels": (8, 8), "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}


def make_unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(8, 3, 3, layers_per_block=1, norm_num_groups=8, **SMALL)


def test_importing_distill_loads_no_torch():
    code = (
        "import sys, distill; assert 'torch' not in sys.modules and 'train' in dir(distill); print(distill.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.strip() == distill.__version__, done.stderr


@pytest.mark.parametrize("name", distill.__all__)
def test_every_public_name_exists_and_has_a_docstring(name):
    assert (getattr(distill, name).__doc__ or "").strip(), name


def imported_first() -> None:
    """Import two modules as the first of the package, which then sets them as its attributes."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "distill"]:
        del sys.modules[name]
    for name in ("distill.train", "distill.sample"):
        importlib.import_module(name)
    package = sys.modules["distill"]
    print(callable(package.train), callable(package.sample))


@pytest.mark.exhaustive
def test_train_stays_a_function_after_its_module_is_imported(tmp_path):
    process = Fork(tmp_path, imported_first)
    assert process.wait() == 0 and process.out.strip() == "True True", process.error


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dmd", "scm"])
def test_a_unet_in_memory_is_distilled_in_ten_lines(method, tmp_path):
    unet, latents = make_unet(), torch.randn(32, 3, 8, 8)

    teacher = distill.load_teacher(unet, DDPMScheduler())
    recipe = distill.Recipe(
        name="mine",
        teacher=distill.TeacherRecipe(),
        method={"name": method},
        output=str(tmp_path),
        train=distill.TrainRecipe(steps=2, batch_size=4, evaluate_samples=4, evaluate_teacher_steps=2, tracker="none"),
    )
    folder = distill.train(recipe, teacher, latents)
    images = DiffusionPipeline.from_pretrained(folder)(num_inference_steps=1, output_type="np").images

    assert images.shape == (1, 8, 8, 3)
    assert distill.train(recipe, distill.load_teacher(make_unet(), DDPMScheduler()), latents) == folder  # finished


@pytest.mark.slow
def test_a_teacher_in_memory_needs_no_family_and_no_sigma_data_in_its_recipe(tmp_path):
    """A network of EDM with sigma_data 0.7, as `family: auto`; stating sigma_data is the same recipe."""
    settings = distill.TrainRecipe(steps=1, batch_size=4, evaluate_samples=4, evaluate_every=0, tracker="none")
    for stated in (None, 0.7):
        teacher = distill.load_teacher(make_unet(), EDMEulerScheduler(sigma_data=0.7))
        section = distill.TeacherRecipe(sigma_data=stated)
        assert section.family == "auto"
        name = f"run-{stated}"
        recipe = distill.Recipe(name, section, {"name": "dmd"}, output=str(tmp_path), train=settings)
        folder = distill.train(recipe, teacher, torch.randn(8, 3, 8, 8))
        assert json.loads((folder / "distill.json").read_text())["teacher"]["sigma_data"] == 0.7


@pytest.mark.slow
def test_an_export_that_cannot_work_is_found_before_training(tmp_path, monkeypatch):
    settings = distill.TrainRecipe(steps=1, batch_size=4, evaluate_samples=4, evaluate_every=0, tracker="none")
    recipe = distill.Recipe("mine", distill.TeacherRecipe(), {"name": "scm"}, output=str(tmp_path), train=settings)
    teacher = distill.load_teacher(make_unet(), DDPMScheduler())

    def flipped(self, latents):
        return -latents * self.denoiser.path.sigma_data

    for broken, message in (({"decode": flipped}, "differ"), ({"exported_class": 3}, "'int' object is not callable")):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=message) as error:
            for name, value in broken.items():
                patch.setattr(type(teacher), name, value)
            distill.train(recipe, teacher, torch.randn(8, 3, 8, 8))
        assert "nothing is trained" in str(error.value)
        assert not list((tmp_path / "mine").glob("checkpoints/0*")) and not list((tmp_path / "mine").glob(".pipe*"))
    distill.train(recipe, teacher, torch.randn(8, 3, 8, 8))


@pytest.mark.slow
def test_a_run_in_memory_is_resumed_with_the_same_teacher_and_latents_only(tmp_path):
    def recipe(steps):
        settings = distill.TrainRecipe(steps=steps, batch_size=4, evaluate_samples=4, evaluate_every=0, tracker="none")
        return distill.Recipe("mine", distill.TeacherRecipe(), {"name": "scm"}, output=str(tmp_path), train=settings)

    latents = torch.randn(32, 3, 8, 8)
    distill.train(recipe(1), distill.load_teacher(make_unet(), DDPMScheduler()), latents)
    other = make_unet()
    torch.nn.init.ones_(other.conv_out.bias)
    for teacher, rows in ((other, latents), (make_unet(), latents + 1)):
        with pytest.raises(ValueError, match="checkpoints of another recipe or of other data"):
            distill.train(recipe(2), distill.load_teacher(teacher, DDPMScheduler()), rows)
    distill.train(recipe(2), distill.load_teacher(make_unet(), DDPMScheduler()), latents)


def test_mistakes_in_memory_are_sentences(tmp_path):
    recipe = distill.Recipe("mine", distill.TeacherRecipe(), {"name": "scm"}, output=str(tmp_path))
    teacher = distill.load_teacher(make_unet(), DDPMScheduler())
    with pytest.raises(ValueError, match="scheduler must be the one that the UNet was trained with"):
        distill.load_teacher(make_unet())
    with pytest.raises(ValueError, match="source must be a path, a diffusers pipeline or a UNet2DModel, got int"):
        distill.load_teacher(3)
    with pytest.raises(ValueError, match=r"teacher\.path must be set, or a teacher must be passed"):
        distill.train(recipe)
    for wrong in (distill.load_teacher, "pocket", DDPMPipeline(make_unet(), DDPMScheduler())):
        with pytest.raises(ValueError, match="teacher must be a Teacher, as load_teacher returns it, got"):
            distill.train(recipe, wrong)
    with pytest.raises(ValueError, match="recipe must be a Recipe, as load_recipe returns it, got str"):
        distill.train("pocket/dmd")
    with pytest.raises(ValueError, match='device must be one of torch, such as "cpu" or "cuda:0", got \'gpu\''):
        distill.load_teacher(make_unet(), DDPMScheduler(), device="gpu")
    with pytest.raises(ValueError, match=r"dtype must be one of torch, such as torch\.bfloat16, got 'float16'"):
        distill.load_teacher(make_unet(), DDPMScheduler(), dtype="float16")
    with pytest.raises(ValueError, match=r"latents must have the shape \(N, 3, 8, 8\), got \(4, 3, 9, 9\)"):
        distill.train(recipe, teacher, torch.zeros(4, 3, 9, 9))
    with pytest.raises(ValueError, match="latents must be finite"):
        distill.train(recipe, teacher, torch.full((4, 3, 8, 8), torch.nan))
    with pytest.raises(ValueError, match=r"captions must have the length of latents \(4\), got 1"):
        distill.train(recipe, teacher, torch.zeros(4, 3, 8, 8), ["one"])


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.zeros(4, 3, 8, 8).numpy(), "latents must be a tensor with values, got ndarray"),
        (torch.zeros(4, 3, 8, 8, device="meta"), "latents must be a tensor with values, got one on the meta device"),
    ],
)
def test_latents_without_values_are_refused(latents, message, tmp_path):
    recipe = distill.Recipe("mine", distill.TeacherRecipe(), {"name": "scm"}, output=str(tmp_path))
    with pytest.raises(ValueError, match=message):
        distill.train(recipe, distill.load_teacher(make_unet(), DDPMScheduler()), latents)


@pytest.mark.slow
def test_captions_and_the_teachers_path_in_memory_are_checked(text_pipeline, tmp_path):
    def recipe(path=None):
        return distill.Recipe("mine", distill.TeacherRecipe(path=path), {"name": "scm"}, output=str(tmp_path))

    teacher = distill.load_teacher(str(text_pipeline))
    latents = torch.zeros(4, *teacher.shape, requires_grad=True)
    for captions, message in (
        (None, "captions must have a text for each of the latents of a teacher with prompts"),
        ("coat", "captions must be a sequence of texts, got 'coat'"),
        (7, "captions must be a sequence of texts, got 7"),
        ((str(n) for n in range(3)), r"captions must have the length of latents \(4\), got 3"),
        ([1, 2, 3, 4], "captions must be a sequence of texts"),
    ):
        with pytest.raises(ValueError, match=message):
            distill.train(recipe(), teacher, latents, captions)
    with pytest.raises(ValueError, match=r"teacher\.path must be null for a teacher in memory, or the path"):
        distill.train(recipe("pocket"), teacher, latents, ["coat"] * 4)
    own = setup.prepare_in_memory(recipe(str(text_pipeline)), teacher)
    plan = setup.plan_data(recipe(str(text_pipeline)), own, latents, ["coat"] * 4)
    assert not plan.latents.values.requires_grad


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"family": "dit"}, "teacher.family must be auto, .*, whose class is Unconditional; got dit"),
        ({"sigma_data": 0.5}, "teacher.sigma_data must be null, or that of the teacher in memory, 1; got 0.5"),
        ({"size": {"height": 64}}, "teacher.size must be empty for a teacher of the family Unconditional"),
    ],
)
def test_a_recipe_that_describes_another_teacher_than_the_one_in_memory_is_refused(section, message, tmp_path):
    recipe = distill.Recipe("mine", distill.TeacherRecipe(**section), {"name": "scm"}, output=str(tmp_path))
    with pytest.raises(ValueError, match=message):
        distill.train(recipe, distill.load_teacher(make_unet(), DDPMScheduler()), torch.zeros(4, 3, 8, 8))


def test_the_networks_of_teachers_built_without_load_teacher_are_checked(tmp_path):
    recipe = distill.Recipe("mine", distill.TeacherRecipe(), {"name": "scm"}, output=str(tmp_path))
    for network, message in (
        (torch.compile(make_unet(), backend="eager"), "must not be compiled"),
        (make_unet().to("meta"), "must have weights"),
    ):
        teacher = distill.load_teacher(make_unet(), DDPMScheduler())
        teacher.denoiser.network = network
        with pytest.raises(ValueError, match=f"the network of the teacher {message}"):
            distill.train(recipe, teacher, torch.zeros(4, 3, 8, 8))


@pytest.mark.slow
def test_pipelines_in_memory_that_cannot_be_copied_and_exported_are_refused(text_pipeline):
    pipeline = StableDiffusionPipeline.from_pretrained(text_pipeline, safety_checker=None)
    for sigma_data in (0.0, -1.0, float("nan"), float("inf"), "1", True):
        with pytest.raises(ValueError, match="sigma_data must be positive and finite, got"):
            distill.load_teacher(pipeline, sigma_data=sigma_data)
    unet = pipeline.unet
    pipeline.unet = torch.compile(unet, backend="eager")
    with pytest.raises(ValueError, match="unet of the pipeline must not be compiled"):
        distill.load_teacher(pipeline)
    pipeline.unet = unet
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(ValueError, match="unet of the pipeline must not have adapters: merge them first"):
        distill.load_teacher(pipeline)
    pipeline.unload_lora_weights()
    distill.load_teacher(pipeline)
    with pytest.raises(ValueError, match="unet of the pipeline must have weights, but it is on the meta device"):
        distill.load_teacher(DDPMPipeline(make_unet().to("meta"), DDPMScheduler()), device="meta")


def test_a_pipeline_in_memory_is_a_teacher():
    teacher = distill.load_teacher(DDPMPipeline(make_unet(), DDPMScheduler()))
    assert tuple(teacher.shape) == (3, 8, 8) and not teacher.guided


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: distill.TrainRecipe(steps=-1), "steps must be at least 0, got -1"),
        (lambda: distill.TrainRecipe(steps="many"), "steps must be a whole number, got 'many'"),
        (lambda: distill.OptimizerRecipe(lr=float("inf")), "lr must be positive, at most 10 and finite, got inf"),
        (lambda: distill.Recipe("a/b", distill.TeacherRecipe(), {"name": "dmd"}), "name must be a plain folder name"),
        (lambda: distill.Recipe("a", distill.TeacherRecipe(), {"name": "dm"}), "there is no method 'dm'"),
        (lambda: distill.Recipe("a", distill.TeacherRecipe(), {"name": "dmd", "gan": 1}), "unknown key 'method.gan'"),
        (
            lambda: distill.Recipe("a", distill.TeacherRecipe(), {"name": "dmd"}, optimizers={"student": {"lr": -1}}),
            r"optimizers\.student\.lr must be positive, got -1",
        ),
    ],
)
def test_a_recipe_from_python_is_checked_as_one_from_yaml(make, message):
    with pytest.raises(ValueError, match=message):
        make()
