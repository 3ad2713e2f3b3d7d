"""Pipelines without a family are refused with the reason."""

import diffusers
import pytest

from teachers.loading.registry import family_by_class

REFUSED = {
    "LTX2Pipeline": "which denoises a clip and its sound together",
    "LTX2ImageToVideoPipeline": "which denoises a clip and its sound together",
    "Ideogram4Pipeline": "which guides with a second transformer, by scales that depend on the step",
    "LTXConditionPipeline": "which needs an image or a clip in addition to the prompt",
    "WanImageToVideoPipeline": "which needs an image in addition to the prompt",
    "WanVACEPipeline": "which needs an image or a clip in addition to the prompt",
    "WanAnimatePipeline": "which needs an image or a clip in addition to the prompt",
    "CogVideoXImageToVideoPipeline": "which needs an image in addition to the prompt",
    "CogVideoXVideoToVideoPipeline": "which needs an image or a clip in addition to the prompt",
    "HunyuanVideo15ImageToVideoPipeline": "which needs an image in addition to the prompt",
    "HunyuanVideoFramepackPipeline": "which needs an image in addition to the prompt",
    "AnimateDiffSDXLPipeline": "whose UNet has the conditions of Stable Diffusion XL",
    "AnimateDiffControlNetPipeline": "which needs an image or a clip in addition to the prompt",
    "StableDiffusionXLInpaintPipeline": "which needs an image in addition to the prompt",
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.first_is_quick
def test_pipelines_with_other_inputs_are_refused_with_the_reason(name):
    assert hasattr(diffusers, name)
    with pytest.raises(ValueError, match=f"no installed family takes a {name}, {REFUSED[name]}"):
        family_by_class(name)


@pytest.mark.parametrize("name", ["MochiPipeline", "StableAudio3Pipeline", "AnimateDiffXPipeline"])
def test_of_other_pipelines_no_reason_is_known(name):
    with pytest.raises(ValueError, match=rf"no installed family takes a {name} \(fewstep families"):
        family_by_class(name)
