"""Train the classifier and the teacher: some minutes on one CPU core.

python -m fewstep_digits.make
"""

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file

from fewstep_digits import PIPELINE, digits
from fewstep_digits.classifier import WEIGHTS, Classifier
from fewstep_digits.network import DigitsTransformer
from fewstep_digits.pipeline import DigitsPipeline


def train_classifier(steps: int = 1500) -> Classifier:
    """A classifier of all digits but the last 297; prints its accuracy on these."""
    images, labels = digits()
    classifier = Classifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), 2e-3, weight_decay=0.1)
    for _ in range(steps):
        rows = torch.randint(1500, (128,))
        F.cross_entropy(classifier(images[rows]), labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    print("accuracy", (classifier(images[1500:]).argmax(1) == labels[1500:]).float().mean().item())
    return classifier


def train_teacher(steps: int = 2500) -> DigitsTransformer:
    """A rectified flow (Liu et al. 2022, arXiv 2209.03003) of all digits; every tenth digit is the null class."""
    images, labels = digits()
    network = DigitsTransformer()
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)
    )
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for step in range(steps):
        rows = torch.randint(len(images), (128,))
        x0, noise = images[rows] * 2 - 1, torch.randn(128, 1, 8, 8)
        s = torch.sigmoid(torch.randn(128))
        digit = torch.where(torch.rand(128) < 0.1, 10, labels[rows])
        level = s[:, None, None, None]
        loss = F.mse_loss(network((1 - level) * x0 + level * noise, 1000 * s, digit), noise - x0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average.update_parameters(network)
        if step % 500 == 0:
            print(step, loss.item(), flush=True)
    return average.module


def main() -> None:
    torch.manual_seed(0)
    WEIGHTS.parent.mkdir(exist_ok=True)
    save_file(train_classifier().state_dict(), WEIGHTS)
    network = train_teacher().half()  # the files of the package stay small
    DigitsPipeline(network, FlowMatchEulerDiscreteScheduler()).save_pretrained(PIPELINE)


if __name__ == "__main__":
    main()
