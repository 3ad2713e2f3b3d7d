"""Judges of the pocket video teacher's clips: motion by image moments, and the class of the object by a small network.

The network was trained on real clips by `benchmarks.pocket.video.make`. Its 64 penultimate features, averaged over the
frames, and the four numbers of the motion serve Frechet distances; metrics that use them have "pocket-video" in their
name.
"""

import torch
from torch import Tensor, nn

from teachers.media.motion import GROWTH_UNIT, SHIFT_UNIT, TURN_UNIT, motion
from teachers.networks.judges import block
from teachers.pocket_video.captions import OBJECTS
from teachers.pocket_video.parts import CLIP

FRAME_FEATURES = 64
FEATURES = FRAME_FEATURES + 4  # dimension of the features


class ClipJudge(nn.Module):
    """Classifies the object in clips (B, 3, 9, 32, 32) in [0, 1] into ten classes of clothing."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(block(1, 24), block(24, 48), block(48, 64))
        self.project = nn.Linear(64 * 16, FRAME_FEATURES)
        self.classify = nn.Linear(FRAME_FEATURES, len(OBJECTS))

    def frame_features(self, clips: Tensor) -> Tensor:
        """Penultimate features (B, 64): the mean over the frames.

        Raises:
            ValueError: If the clips have another shape.
        """
        if tuple(clips.shape[1:]) != CLIP.shape:
            raise ValueError(
                f"the pocket video judge takes clips of shape {CLIP.shape}, got {tuple(clips.shape[1:])}; choose "
                "another feature extractor for this pipeline"
            )
        frames = clips.float().mean(dim=1).flatten(0, 1)[:, None] * 2 - 1  # (B F, 1, 32, 32)
        features = torch.relu(self.project(self.body(frames).flatten(1)))
        return features.unflatten(0, (len(clips), CLIP.frames)).mean(dim=1)

    def features(self, clips: Tensor) -> Tensor:
        """Features for Frechet distances.

        Args:
            clips: Clips (B, 3, 9, 32, 32) in [0, 1].

        Returns:
            Features (B, 68): those of the frames and the motion.
        """
        moved = motion(clips)
        numbers = [moved.right / SHIFT_UNIT, moved.down / SHIFT_UNIT, moved.clockwise / TURN_UNIT]
        numbers.append(moved.growth / GROWTH_UNIT)
        return torch.cat([self.frame_features(clips), torch.stack(numbers, dim=1).float()], dim=1)

    def forward(self, clips: Tensor) -> Tensor:
        """Logits of the classes (B, 10) of clips (B, 3, 9, 32, 32) in [0, 1]."""
        logits: Tensor = self.classify(self.frame_features(clips))
        return logits
