"""Network evaluations of pipelines whose other inputs have more rows than the sample, or that have two networks."""

import pytest
import torch
from diffusers import DiffusionPipeline

from eval.pipelines.generate import arguments, counted, latent_shape
from teachers.loading.registry import family_of_class
from tests.teachers.tiny_media import BUILDERS

PROMPTS = ["a coat", "a bag"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AnimateDiff", "Wan 2.2 A14B", "LTX", "Stable Audio"])
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
    with counted(pipe) as count, torch.no_grad():
        pipe(**ready)
    assert count.evaluations == 4 * len(PROMPTS)
    assert BUILDERS[name][0] == family


def test_the_positions_of_flux_are_not_evaluations(tmp_path, text_pipeline):
    from teachers.pocket.parts import make_tokenizer
    from tests.teachers.tiny_pipelines import flux

    torch.manual_seed(0)
    pipe = flux(make_tokenizer(tmp_path), guidance_embeds=False)
    pipe.set_progress_bar_config(disable=True)
    with counted(pipe) as count, torch.no_grad():
        pipe("a coat", num_inference_steps=2, height=16, width=16)
    assert count.evaluations == 2
