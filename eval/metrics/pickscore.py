"""PickScore: which image people would pick, by a CLIP ViT-H/14 tuned on Pick-a-Pic.

    score = exp(logit_scale) cos(image, text)

Source: Kirstain et al., "Pick-a-Pic" (arXiv 2305.01569), section 4. The checkpoint's scale is 100: scores are near 20.
"""

from eval.metrics.preference import PreferenceScore


class PickScore(PreferenceScore):
    """Mean PickScore over all samples."""

    key = "pickscore"
    heading = "PickScore"
    label = "PickScore"
    help = (
        "Higher is better. The score of a CLIP model that was tuned on people's choices between images of one prompt "
        "(arXiv 2305.01569): the mean over all samples and its 95% interval."
    )
    needs = frozenset({"images", "prompts", "pickscore"})
    named_by = "pickscore"
    position = 71
    learned_scale = True
