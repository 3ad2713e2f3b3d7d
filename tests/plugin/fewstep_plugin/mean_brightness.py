"""Mean brightness: the mean of all pixel values of an image."""

from eval.metrics.base import SampleMetric


class MeanBrightness(SampleMetric):
    key = "mean_brightness"
    heading = "Brightness"
    help = "Mean pixel value, 0 for black and 1 for white."
    higher_is_better = None
    needs = frozenset({"images"})
    format = ".1%"

    def score(self, images, prompts):
        return images.mean(dim=(1, 2, 3))
