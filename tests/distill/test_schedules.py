"""A student whose times cannot be exported is refused before training."""

import pytest
import torch
from diffusers import ConfigMixin, DDIMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config

from distill.methods.contract import check_schedules
from distill.methods.scm import SCM, SCMOptions
from teachers.core.few_step import lcm_timesteps
from teachers.families.unconditional import Unconditional


class Plain(ModelMixin, ConfigMixin):
    """A network without a time embedding of diffusers."""

    @register_to_config
    def __init__(self, sample_size=16, in_channels=3, out_channels=3, class_embed_type=None, num_class_embeds=None):
        super().__init__()
        self.layer = torch.nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, sample, timestep, return_dict=True):
        return (self.layer(sample) * (timestep.reshape(-1, 1, 1, 1) / 1000).cos(),)


def distiller(*second_times: float, **config: float) -> SCM:
    teacher = Unconditional(Plain(), DDIMScheduler(clip_sample=False, **config))
    return SCM(teacher, 1.0, SCMOptions(adaptation_steps=0, second_times=second_times))


def test_times_that_a_network_without_time_embedding_cannot_have_are_refused():
    path = distiller(0.5).student.path
    reached = path.angle(torch.tensor(lcm_timesteps(path, 2))).tolist()[1]
    check_schedules(distiller(reached))
    check_schedules(distiller(float(f"{reached:.9g}")))  # as the message has it
    with pytest.raises(ValueError, match=rf"the times of a Plain must be .*, {reached:.9g} radians, got 1\.\d+, 0\.5:"):
        check_schedules(distiller(0.5))


def test_a_teacher_with_too_few_timesteps_for_the_steps_is_refused():
    with pytest.raises(ValueError, match=r"2 steps needs a teacher with at least 4 timesteps, got 3 \(num_train_time"):
        check_schedules(distiller(0.5, num_train_timesteps=3, beta_start=0.2, beta_end=0.9))
