"""Moving photographs: Fashion-MNIST's photographs of clothing with one of eight synthetic motions, as Moving MNIST.

Clips are rendered when they are needed: their number is unlimited, and none is stored.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from teachers.media.motion import MOTIONS
from teachers.pocket_video.parts import CLIP

ZOOM = 0.68  # of a photograph of 32 x 32 pixels in a clip
SHIFT, TURN, GROWTH = 0.42, 0.9, 0.45  # from the middle to the end: half sides, radians, logarithm of the size
SLOWEST = 0.7  # of these
OFFSET = 0.12  # half sides by which the object is away from the centre, at most


def render(photographs: Tensor, motions: Tensor, rng: torch.Generator) -> Tensor:
    """Move photographs.

    Args:
        photographs: Photographs (B, 28, 28) as bytes, on black.
        motions: Indices into MOTIONS (B,).
        rng: Draws speeds and positions, on the device of the photographs.

    Returns:
        Clips (B, 3, 9, 32, 32) in [-1, 1].
    """
    count, device = len(photographs), photographs.device
    speed = SLOWEST + (1 - SLOWEST) * torch.rand(count, 1, generator=rng, device=device)
    offset = OFFSET * (2 * torch.rand(count, 2, 1, generator=rng, device=device) - 1)
    time = speed * torch.linspace(-1, 1, CLIP.frames, device=device)

    def along(positive: str, negative: str) -> Tensor:
        sign = (motions == MOTIONS.index(positive)).float() - (motions == MOTIONS.index(negative)).float()
        return sign[:, None] * time

    x = offset[:, 0] + SHIFT * along("moving right", "moving left")
    y = offset[:, 1] + SHIFT * along("moving down", "moving up")
    angle = TURN * along("turning right", "turning left")
    zoom = ZOOM * (GROWTH * along("growing", "shrinking")).exp()
    cosine, sine = angle.cos() / zoom, angle.sin() / zoom
    rows = [
        torch.stack([cosine, sine, -(cosine * x + sine * y)], dim=-1),
        torch.stack([-sine, cosine, sine * x - cosine * y], dim=-1),
    ]
    matrices = torch.stack(rows, dim=-2).flatten(0, 1)  # (B F, 2, 3): from the clip to the photograph
    size = (count * CLIP.frames, 1, CLIP.height, CLIP.width)
    grid = F.affine_grid(matrices, size, align_corners=False)
    padded = F.pad(photographs[:, None].float() / 255, (2, 2, 2, 2)).repeat_interleave(CLIP.frames, dim=0)
    frames = F.grid_sample(padded, grid, mode="bilinear", align_corners=False)
    return (frames.view(count, 1, *CLIP.shape[1:]) * 2 - 1).expand(-1, 3, -1, -1, -1)


def random_clips(photographs: Tensor, labels: Tensor, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random clips (count, 3, 9, 32, 32) in [-1, 1], and their classes and motions (count, 2)."""
    device = photographs.device
    rows = torch.randint(len(photographs), (count,), generator=rng, device=device)
    motions = torch.randint(len(MOTIONS), (count,), generator=rng, device=device)
    return render(photographs[rows], motions, rng), torch.stack([labels[rows], motions], dim=1)
