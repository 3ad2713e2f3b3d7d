"""`AddedGuidance`: pipelines whose guidance scale is one less than the usual one."""

from collections.abc import Sequence
from typing import Any

from teachers.families.latent import LatentTeacher


class AddedGuidance(LatentTeacher):
    """A pipeline that adds a multiple of the difference of both outputs, so that its scale 0 means no guidance.

    Its `guidance_scale` is one less than `teacher.guidance`.
    """

    def calls(self, num_steps: int, times: Sequence[float] = ()) -> dict[str, Any]:
        return super().calls(num_steps, times) | {"guidance_scale": 0.0}

    def usual_call(self, num_steps: int, guidance: float) -> dict[str, Any]:
        return super().usual_call(num_steps, guidance - 1.0)
