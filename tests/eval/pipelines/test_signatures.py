"""Pipelines of other packages: other names of arguments, missing arguments, other forms of output."""

import inspect
import json
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, ModelMixin, StableDiffusionPipeline, UNet2DModel
from PIL import Image
from torch import nn

from eval.pipelines.demo_pipelines import DemoPipeline
from eval.pipelines.generate import arguments, latent_shape
from eval.pipelines.jobs import jobs_of
from eval.pipelines.loading import load_pipeline
from eval.pipelines.networks import count_evaluations, network
from eval.pipelines.runs import read_run
from eval.pipelines.signatures import argument, check_call, pipeline_class, takes_prompts
from teachers.families.stable_diffusion import StableDiffusion
from teachers.families.unconditional import Unconditional
from teachers.media import ANY_IMAGE
from tests.plugins import install

CPU = torch.device("cpu")
SOURCE = """
import torch
from diffusers import DDPMPipeline, StableDiffusionPipeline
from teachers.families.stable_diffusion import StableDiffusion
from teachers.families.unconditional import Unconditional

class WordsPipeline(StableDiffusionPipeline):
    def __call__(self, words, evaluations=4, strength=1.0, start=None):
        return super().__call__(words, num_inference_steps=evaluations, guidance_scale=strength, latents=start,
                                output_type="pt").images

class Words(StableDiffusion):
    pipelines = (WordsPipeline,)
    call_names = {"prompt": "words", "num_inference_steps": "evaluations", "guidance_scale": "strength",
                  "latents": "start"}

class FixedPipeline(DDPMPipeline):
    def __call__(self, batch_size):
        return super().__call__(batch_size, num_inference_steps=3, output_type="np", return_dict=False)

class Fixed(Unconditional):
    pipelines = (FixedPipeline,)
"""


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """The module of a package with two families whose pipelines are called in their own way."""
    points = ["words = odd_calls:Words", "fixed = odd_calls:Fixed"]
    install(monkeypatch, tmp_path / "site", "odd-calls", {"distill.teachers": points})
    (tmp_path / "site" / "odd_calls.py").write_text(SOURCE)
    import odd_calls

    yield odd_calls
    import sys

    del sys.modules["odd_calls"]


def save_as(pipeline: DiffusionPipeline, kind: type[DiffusionPipeline], folder) -> None:
    accepted = inspect.signature(kind.__init__).parameters
    parts = {name: part for name, part in pipeline.components.items() if name in accepted}
    kind(**parts).save_pretrained(folder)


@pytest.mark.slow
def test_names_of_arguments_are_those_of_the_family(odd, text_pipeline, tmp_path):
    stock = StableDiffusionPipeline.from_pretrained(text_pipeline)
    save_as(stock, odd.WordsPipeline, tmp_path / "words")
    pipe = load_pipeline(tmp_path / "words", CPU, torch.float32)
    assert type(pipe).__name__ == "WordsPipeline" and takes_prompts(type(pipe))
    call = {"evaluations": 2, "strength": 2.0}
    ready = arguments(pipe, call, ["a coat", "a dress"], [0, 1])
    assert set(ready) == {"words", "start", *call}
    expected = load_pipeline(text_pipeline, CPU, torch.float32)
    usual = arguments(expected, {"num_inference_steps": 2, "guidance_scale": 2.0}, ["a coat", "a dress"], [0, 1])
    assert torch.equal(ANY_IMAGE.received(pipe(**ready)), ANY_IMAGE.received(expected(**usual)))
    assert read_run(tmp_path / "words", [3], 2.0).calls == [
        {"num_steps": 3, "call": {"evaluations": 3, "strength": 2.0}}
    ]
    teacher = DemoPipeline("teacher", pipe, {4: {"evaluations": 4}}, is_teacher=True)
    assert teacher.call(2) == (2, {"evaluations": 2})
    with pytest.raises(ValueError, match='WordsPipeline takes no argument "guidance_scale"'):
        check_call(type(pipe), {"guidance_scale": 1.0}, True)


@pytest.mark.slow
def test_a_teacher_with_a_fixed_number_of_steps_has_one_row(odd, unconditional_pipeline, make_run, tmp_path):
    save_as(DiffusionPipeline.from_pretrained(unconditional_pipeline), odd.FixedPipeline, tmp_path / "fixed")
    pipe = load_pipeline(tmp_path / "fixed", CPU, torch.float32)
    ready = arguments(pipe, {}, None, [0, 1])
    assert ready == {"batch_size": 2}
    with count_evaluations(pipe) as count:
        assert ANY_IMAGE.received(pipe(**ready)).shape == (2, 3, 16, 16)
    assert count.evaluations == 6
    run = make_run(
        pipeline=tmp_path / "fixed",
        teacher={"family": "fixed", "path": str(tmp_path / "fixed"), "num_steps": 3, "call": {}},
        calls=[{"num_steps": 3, "call": {}}],
    )
    read = read_run(run)
    assert read.teacher_steps == 3
    assert [job.name for job in jobs_of([read], read.teacher, False, (1, 2))] == [
        "teacher, 3 steps",
        "student, 3 steps",
    ]
    family = odd.Fixed.load(str(tmp_path / "fixed"), CPU)
    assert family.usual_call(3, 1.0) == {}
    assert DemoPipeline("teacher", pipe, {3: {}}, is_teacher=True).call(7) == (3, {})
    with pytest.raises(ValueError, match="FixedPipeline takes no number of steps"):
        read_run(tmp_path / "fixed")


def test_an_index_of_an_unknown_package_is_refused_before_anything_loads(text_pipeline, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "PipelineOfAnotherMachine"}))
    with pytest.raises(ValueError, match="PipelineOfAnotherMachine; upgrade diffusers, or install the package"):
        pipeline_class(tmp_path)
    for name in (["custom", "Pipeline"], "ModelMixin", "__doc__", "os"):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
        with pytest.raises(ValueError, match="names a class that is not in this version of diffusers"):
            pipeline_class(tmp_path)
    index = json.loads((text_pipeline / "model_index.json").read_text()) | {"unet": ["antigravity", "Network"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="the component unet must be a class of diffusers, transformers"):
        load_pipeline(tmp_path, CPU, torch.float32)


def test_a_call_without_prompts_classes_or_a_batch_size_is_refused():
    class Odd(StableDiffusionPipeline):
        def __call__(self, picture, strength=0.5): ...

    with pytest.raises(ValueError, match="Odd must take prompt, class_labels or batch_size"):
        check_call(Odd, {}, False)
    assert argument(Odd, "latents") is None


PIXELS = torch.rand(2, 3, 4, 6)
ARRAY = PIXELS.permute(0, 2, 3, 1).numpy()
BYTES = (ARRAY * 255).round().astype(np.uint8)


@pytest.mark.parametrize(
    "output",
    [
        SimpleNamespace(images=PIXELS),
        SimpleNamespace(images=ARRAY),
        SimpleNamespace(images=[Image.fromarray(image) for image in BYTES]),
        SimpleNamespace(images=list(ARRAY)),
        SimpleNamespace(images=list(PIXELS)),
        SimpleNamespace(images=BYTES),
        SimpleNamespace(images=torch.from_numpy(BYTES).permute(0, 3, 1, 2)),
        PIXELS,
        ARRAY,
        (PIXELS,),
        ([Image.fromarray(image) for image in BYTES], None),
    ],
)
def test_images_in_every_form(output):
    assert (ANY_IMAGE.received(output) - PIXELS).abs().max() < 1 / 500


def test_grey_images_and_other_outputs():
    grey = torch.rand(2, 4, 6)
    for output in (grey, grey[:, None], grey.numpy(), grey[..., None].numpy()):
        assert torch.equal(ANY_IMAGE.received(output), grey[:, None].expand(-1, 3, -1, -1))
    for output in (SimpleNamespace(images=None), torch.rand(2, 4, 8, 8), "x", []):
        with pytest.raises(ValueError, match="a pipeline must return images as"):
            ANY_IMAGE.received(output)


class Plain(nn.Module):
    """A network without a config."""

    def forward(self, latents):
        return latents


@pytest.mark.slow
def test_a_network_without_a_config_and_a_network_of_another_name(unconditional_pipeline):
    pipe = DiffusionPipeline.from_pretrained(unconditional_pipeline)
    assert latent_shape(pipe, {}) == (3, 16, 16)
    pipe.unet = Plain()
    assert latent_shape(pipe, {}) is None and isinstance(network(pipe), Plain)
    with count_evaluations(pipe) as count:
        pipe.unet(latents=torch.ones(5, 3))
        pipe.unet(latents=torch.ones(()))
    assert count.evaluations == 6

    class Nameless(DiffusionPipeline):
        def __init__(self, model: ModelMixin, scheduler: DDPMScheduler) -> None:
            super().__init__()
            self.register_modules(model=model, scheduler=scheduler)

    with pytest.raises(ValueError, match="Nameless must have a transformer or a unet"):
        network(Nameless(UNet2DModel(sample_size=8, block_out_channels=(32, 32, 32, 32)), DDPMScheduler()))


def test_families_inherit_what_they_do_not_declare():
    class Negative(StableDiffusion):
        call_names: ClassVar = {"prompt": "prompt"}

    assert Negative.pipelines == StableDiffusion.pipelines and Unconditional.network == "unet"
