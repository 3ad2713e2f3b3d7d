"""HPSv2: human preference of an image for its prompt, by a CLIP ViT-H/14 tuned on HPD v2.

    score = 100 cos(image, text)

Source: Wu et al., "Human Preference Score v2" (arXiv 2306.09341), equation 1; published tables have the factor 100. The
authors' checkpoint is one of open_clip; the folder has to be its conversion to transformers' `CLIPModel`.
"""

from eval.metrics.preference import PreferenceScore


class HPSv2(PreferenceScore):
    """Mean HPSv2 over all samples."""

    key = "hpsv2"
    heading = "HPSv2"
    label = "HPSv2"
    help = (
        "Higher is better. 100 times the cosine of image and prompt in a CLIP model that was tuned on people's "
        "rankings of images (arXiv 2306.09341): the mean over all samples and its 95% interval."
    )
    needs = frozenset({"images", "prompts", "hpsv2"})
    named_by = "hpsv2"
    position = 72
