"""Why some of diffusers' pipelines without a family cannot be teachers, for one sentence about each."""

import re

# Patterns of class names, and what such a pipeline does that the methods cannot distil; the first that matches counts.
REASONS = {
    r"LTX2\w*Pipeline": "which denoises a clip and its sound together, with a guidance of its own for each",
    r"Ideogram4Pipeline": "which guides with a second transformer, by scales that depend on the step",
    r"GlmImage\w*Pipeline": "whose condition is tokens of an image that a language model draws at random",
    r"AnimateDiffSDXLPipeline": "whose UNet has the conditions of Stable Diffusion XL; convert a model of version 1.5",
    r"\w*(ImageToVideo|Image2Video|I2V|Framepack|SpeechToVideo)\w*Pipeline": (
        "which needs an image in addition to the prompt"
    ),
    r"\w*(VideoToVideo|VACE|WanAnimate|Condition|ControlNet|Upsample)\w*Pipeline": (
        "which needs an image or a clip in addition to the prompt"
    ),
    r"\w*(Img2Img|Inpaint|ImageVariation|Upscale|Fill)\w*Pipeline": "which needs an image in addition to the prompt",
}


def unsupported_reason(name: str) -> str:
    """A relative clause about pipelines of the class `name`, beginning with a comma; empty if nothing is known."""
    found = next((text for pattern, text in REASONS.items() if re.fullmatch(pattern, name)), None)
    return f", {found}" if found else ""
