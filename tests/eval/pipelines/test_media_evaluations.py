"""Network evaluations of pipelines whose other inputs have more rows than the sample, or that have two networks."""

import pytest
import torch
from diffusers import DiffusionPipeline

from eval.pipelines.generate import arguments, latent_shape, own_lists
from eval.pipelines.jobs import jobs_of
from eval.pipelines.networks import count_evaluations
from eval.pipelines.runs import Run
from teachers.loading.registry import family_of_class
from teachers.pocket.parts import make_tokenizer
from tests.teachers.tiny_media import BUILDERS
from tests.teachers.tiny_pipelines import flux

PROMPTS = ["a coat", "a bag"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AnimateDiff", "Wan 2.2 A14B", "LTX", "Stable Audio"])
@pytest.mark.sampled
def test_evaluations_are_counted_for_each_sample(name, tiny_media):
    """AnimateDiff repeats prompts for each frame; the two transformers of Wan 2.2 count alike."""
    family, folder, size = tiny_media(name)
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    kind = family_of_class(type(pipe))
    call = kind.load(str(folder), torch.device("cpu"), size=size).usual_call(4, 1.0)
    assert latent_shape(pipe, call) is None  # the pipeline draws its noise itself
    ready = arguments(pipe, call, PROMPTS, [0, 1])
    assert "latents" not in ready and len(ready["generator"]) == 2
    with count_evaluations(pipe) as count, torch.no_grad():
        pipe(**ready)
    assert count.evaluations == 4 * len(PROMPTS)
    assert BUILDERS[name][0] == family


@pytest.mark.parametrize("name", ["Z-Image", "Z-Image Omni"])
@pytest.mark.slow
def test_calls_with_the_same_arguments_sample_the_same_although_pipelines_change_their_prompts(name, tiny_media):
    _, folder, size = tiny_media(name)
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    ready = arguments(pipe, {"num_inference_steps": 1, "guidance_scale": 0.0, **size}, PROMPTS, [0, 1])
    ready["latents"] = torch.randn(2, 4, *(side // 2 for side in size.values()))
    first, second = (pipe(**own_lists(ready)).images for _ in range(2))
    assert torch.equal(first, second) and ready["prompt"] == PROMPTS


@pytest.mark.parametrize(("name", "counts"), [("LTX", [2, 4]), ("Stable Audio", [2, 4]), ("Wan 2.1", [1, 2, 4])])
def test_few_step_rows_of_a_teacher_begin_at_pure_noise(name, counts, tiny_media, tmp_path):
    """One step of LTX's schedule is not a number, and one of Stable Audio's begins at its smallest noise level."""
    teacher = str(tiny_media(name)[1])
    run = Run(tmp_path, "run", "dmd", teacher, {"num_inference_steps": 50}, 50, [], None, None, None, None)
    jobs = jobs_of([run], teacher, True, [1, 2, 4])
    assert [job.num_steps for job in jobs] == [50, *counts]


def test_the_positions_of_flux_are_not_evaluations(tmp_path):
    torch.manual_seed(0)
    pipe = flux(make_tokenizer(tmp_path), guidance_embeds=False)
    pipe.set_progress_bar_config(disable=True)
    with count_evaluations(pipe) as count, torch.no_grad():
        pipe("a coat", num_inference_steps=2, height=16, width=16)
    assert count.evaluations == 2
