"""rCM is the weighted sum of sCM and DMD on one student."""

import pytest
import torch

from distill.data.batch import Batch
from distill.data.batch_random import BatchRandom
from distill.methods.dmd import DMD
from distill.methods.dmd_options import DMDOptions
from distill.methods.rcm import RCM, RCMOptions
from distill.methods.scm import SCM, SCMOptions
from teachers.families.analytic import Analytic, eight_gaussians
from teachers.families.stable_diffusion import StableDiffusion

CPU = torch.device("cpu")


def method(**options) -> RCM:
    torch.manual_seed(0)
    return RCM(Analytic(eight_gaussians()), 1.0, RCMOptions(scm=SCMOptions(adaptation_steps=5), **options))


def batch() -> Batch:
    return Batch(
        {}, BatchRandom(("rcm",), 0, 16, 16, CPU), torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    )


def test_loss_is_the_weighted_sum():
    rcm = method(dmd_weight=3.0)
    total, logs = rcm("student", batch(), 100)
    same = batch()  # both losses use one stream of random numbers, in this order
    scm, _ = SCM.forward(rcm.parts[0], "student", same, 100)
    dmd, _ = DMD.forward(rcm.parts[1], "student", same, 100)
    assert torch.allclose(total, scm + 3 * dmd)
    assert {"tangent_norm", "dmd_real_residual"} <= set(logs)


def test_student_is_shared_and_saved_once():
    rcm = method()
    assert rcm.parts[0].student is rcm.parts[1].student is rcm.student
    names = {name.split(".")[0] for name in rcm.state_dict()}
    assert names == {"student", "fake_score"}
    assert rcm.networks() == {"student": [rcm.student], "fake_score": [rcm.fake_score]}
    rcm("student", batch(), 100)[0].backward()
    assert all(p.grad is not None for p in rcm.student.parameters())
    assert all(p.grad is None for p in rcm.fake_score.parameters())


def test_student_adapts_before_the_fake_score_trains():
    rcm = method(dmd=DMDOptions(fake_score_updates=3))
    assert rcm.phases(4) == ("student",)
    assert rcm.phases(5) == ("fake_score",) * 3 + ("student",)
    assert "adaptation_loss" in rcm("student", batch(), 0)[1]


@pytest.mark.slow
def test_student_is_exported_like_that_of_scm(text_pipeline):
    teacher = StableDiffusion.load(str(text_pipeline), CPU)
    rcm = RCM(teacher, 2.0, RCMOptions())
    assert rcm.student.time_scale and rcm.student.max_angle and rcm.fake_score.time_scale is None
    assert rcm.sampling_schedules() == SCM(teacher, 2.0, SCMOptions()).sampling_schedules()
    assert rcm.step_counts([1.5, 0.8]) == (1, 2) and rcm.needs_latents(rcm.options)


def test_options_check_themselves():
    with pytest.raises(ValueError, match="dmd_weight must be positive, got 0"):
        method(dmd_weight=0.0)
    with pytest.raises(ValueError, match=r"scm\.guidances must be empty"):
        RCMOptions(scm=SCMOptions(guidances=(1.0,)))


def test_messages_name_the_options_of_the_parts():
    with pytest.raises(ValueError, match=r"method\.dmd\.timesteps must decrease and be"):
        method(dmd=DMDOptions(timesteps=(2000, 499)))
    separate = RCMOptions(dmd=DMDOptions(guidance_noise="own"))
    with pytest.raises(ValueError, match=r"teacher.guidance must be above 1 with method\.dmd\.guidance_noise=own"):
        RCM.check_run(separate, 1.0)
    fused = RCMOptions(scm=SCMOptions(tangent="jvp_flash"))
    with pytest.raises(ValueError, match=r"method\.scm\.tangent=jvp_flash needs a CUDA device"):
        RCM(Analytic(eight_gaussians()), 1.0, fused)
