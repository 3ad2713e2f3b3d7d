"""Schedules are read from the scheduler's own table, or refused; exports reproduce them."""

import diffusers
import pytest
import torch
from diffusers import (
    AuraFlowPipeline,
    CogVideoXDDIMScheduler,
    CogView4Pipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    FluxPipeline,
    HeliosScheduler,
    IPNDMScheduler,
    Kandinsky5T2IPipeline,
    LTXPipeline,
    PNDMScheduler,
    SanaPipeline,
    SchedulerMixin,
    ScoreSdeVeScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
)

from teachers.core.denoiser import Denoiser
from teachers.core.few_step import consistency_scheduler, lcm_timesteps
from teachers.core.schedule import alphas_cumprod, betas, schedule
from teachers.core.scheduler_config import check_shift, clipping
from teachers.core.trigflow import Flow, VariancePreserving
from teachers.describe import describe
from teachers.families.stable_diffusion import StableDiffusion
from teachers.families.unconditional import Unconditional
from teachers.loading.registry import load_teacher

CPU = torch.device("cpu")
FOUND = {name: getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler")}
# Without placeholders for schedulers whose package is not installed.
CLASSES = {name: kind for name, kind in FOUND.items() if isinstance(kind, type) and issubclass(kind, SchedulerMixin)}
ARGUMENTS = {  # of the schedulers that have no defaults
    "AmusedScheduler": {"mask_token_id": 5},
    "RFD4ProteinaScheduler": {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 1.0, "tsr_sigma": 1.0},
    "VQDiffusionScheduler": {"num_vec_classes": 8},
}
READ = [
    "DDIMInverseScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "TCDScheduler",
    "UnCLIPScheduler",
    "UniPCMultistepScheduler",
]
TABLES = {
    "default betas of LCM": diffusers.LCMScheduler,
    "default betas of Heun": diffusers.HeunDiscreteScheduler,
    "cosine": lambda: DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    "trained betas": lambda: DDIMScheduler(50, trained_betas=torch.linspace(0.001, 0.3, 50).tolist()),
    "CogVideoX": lambda: CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    "zero SNR, DDIM": lambda: DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    "zero SNR, Euler": lambda: EulerDiscreteScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    "zero SNR, UniPC": lambda: UniPCMultistepScheduler(prediction_type="sample", rescale_betas_zero_snr=True),
}


class OwnScheduler(DDIMScheduler):
    """A scheduler of a user, with a table that its config does not describe."""

    def __init__(self, **options):
        super().__init__(**options)
        self.alphas_cumprod = self.alphas_cumprod**1.5


@pytest.mark.parametrize("name", READ)
@pytest.mark.first_is_quick
def test_a_scheduler_with_its_default_betas_gives_its_own_table(name):
    scheduler = CLASSES[name]()
    path, prediction = schedule(scheduler, 1.0)
    assert isinstance(path, VariancePreserving)
    assert torch.equal(path.alphas_cumprod, scheduler.alphas_cumprod.double())
    assert prediction == "epsilon"


@pytest.mark.parametrize("name", sorted(CLASSES))
@pytest.mark.first_is_quick
def test_every_scheduler_of_diffusers_is_read_or_refused_in_one_sentence(name):
    """Nothing else happens to a class, and nothing is read as another kind of schedule."""
    scheduler = CLASSES[name](**ARGUMENTS.get(name, {}))
    try:
        path, _ = schedule(scheduler, 1.0)
    except ValueError as error:
        assert "\n" not in str(error) and name in str(error)
        assert name not in READ
        return
    flow = isinstance(
        scheduler, FlowMatchEulerDiscreteScheduler | FlowMatchHeunDiscreteScheduler | FlowMatchLCMScheduler
    )
    assert isinstance(path, Flow) == flow
    assert flow or torch.equal(path.alphas_cumprod, scheduler.alphas_cumprod.double())


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.first_is_quick
def test_exported_scheduler_has_the_table_at_the_student_s_timesteps(name, steps):
    scheduler = TABLES[name]()
    path, prediction = schedule(scheduler, 0.5)
    student = Denoiser(torch.nn.Identity(), path, prediction)
    timesteps = torch.tensor(lcm_timesteps(path, steps))
    times = path.angle(timesteps).tolist()
    exported = consistency_scheduler(student, times)
    expected = alphas_cumprod(scheduler).double()[timesteps]
    torch.testing.assert_close(exported.alphas_cumprod.double()[timesteps], expected, rtol=1e-3, atol=1e-7)
    assert exported.config.prediction_type == prediction


@pytest.mark.parametrize("name", TABLES)
def test_betas_give_the_table_back(name):
    table = alphas_cumprod(TABLES[name]())
    again = DDIMScheduler(len(table), trained_betas=betas(table)).alphas_cumprod
    torch.testing.assert_close(again, table.float(), rtol=1e-3, atol=1e-7)


def test_the_last_level_of_a_rescaled_table_is_the_solver_s_own_unless_the_noise_falls_there():
    zero = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    usual = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **zero)
    assert torch.equal(alphas_cumprod(usual), usual.alphas_cumprod) and usual.alphas_cumprod[-1] == 2**-24
    assert alphas_cumprod(EulerDiscreteScheduler(**zero))[-1] == 0


def test_a_subclass_with_its_own_table_is_read():
    path, _ = schedule(OwnScheduler(), 1.0)
    assert torch.equal(path.alphas_cumprod, (DDIMScheduler().alphas_cumprod ** 1.5).double())


ZERO = {"rescale_betas_zero_snr": True}
REFUSED = {
    "zero terminal SNR, DDIM": (lambda: DDIMScheduler(**ZERO), "zero terminal SNR"),
    "zero terminal SNR, Euler": (lambda: EulerDiscreteScheduler(**ZERO), "zero terminal SNR"),
    "zero terminal SNR, betas": (lambda: DDIMScheduler(3, trained_betas=[0.1, 0.5, 1.0]), "zero terminal SNR"),
    "EDM Euler": (EDMEulerScheduler, "EDMEulerScheduler is not supported"),
    "EDM DPM": (EDMDPMSolverMultistepScheduler, "EDMDPMSolverMultistepScheduler is not supported"),
    "VE": (ScoreSdeVeScheduler, "ScoreSdeVeScheduler is not supported"),
    "IPNDM has betas in its config only": (IPNDMScheduler, "IPNDMScheduler is not supported"),
    "stages": (HeliosScheduler, "HeliosScheduler is not supported"),
    "continuous timesteps": (
        lambda: EulerDiscreteScheduler(
            timestep_type="continuous", prediction_type="v_prediction", sigma_min=0.002, sigma_max=700.0
        ),
        "EulerDiscreteScheduler is not supported",
    ),
    "epsilon on a flow": (lambda: DPMSolverMultistepScheduler(use_flow_sigmas=True), "must be flow_prediction"),
    "flow without flow sigmas": (
        lambda: DPMSolverMultistepScheduler(prediction_type="flow_prediction"),
        "prediction_type of DPMSolverMultistepScheduler must be one of epsilon, sample, v_prediction",
    ),
    "inverted timesteps": (lambda: FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
    "too many betas": (
        lambda: DDIMScheduler(1000, trained_betas=torch.linspace(0.001, 0.2, 500).tolist()),
        "num_train_timesteps of DDIMScheduler must be the number of its betas, 500, got 1000",
    ),
    "NaN betas": (lambda: DDIMScheduler(3, trained_betas=[0.1, float("nan"), 0.2]), "alphas_cumprod must be"),
    "no scheduler": (lambda: None, "the pipeline's scheduler must be"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_schedules_are_refused(name):
    build, match = REFUSED[name]
    with pytest.raises(ValueError, match=match) as error:
        schedule(build(), 1.0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr_is_finite_for_other_predictions(prediction):
    path, read = schedule(DDIMScheduler(prediction_type=prediction, **ZERO), 1.0)
    assert read == prediction
    denoiser = Denoiser(Network(), path, read)
    t = torch.tensor([path.t_max, 1.0], dtype=torch.float64)
    assert denoiser.velocity(torch.randn(2, 1, 4, 4), t, {}).isfinite().all()


class Network(torch.nn.Module):
    def forward(self, sample, timestep, return_dict):
        return (sample,)


def test_the_older_name_of_sample_prediction_is_read():
    assert schedule(EulerDiscreteScheduler(prediction_type="original_sample"), 1.0)[1] == "sample"


@pytest.mark.parametrize(
    ("scheduler", "shift"),
    [
        (FlowMatchHeunDiscreteScheduler(shift=3.0), 3.0),
        (FlowMatchLCMScheduler(shift=2.0), 2.0),
        (UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=4.0, prediction_type="flow_prediction"), 4.0),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"), 0.5 + 0.65 * 768 / 3840),
    ],
)
def test_flow_schedulers_have_their_shift(scheduler, shift):
    path, prediction = schedule(scheduler, 1.0, tokens=1024)
    assert isinstance(path, Flow) and prediction == "flow_prediction"
    assert path.shift == pytest.approx(shift)


def pixels():
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, **kinds)


@pytest.mark.parametrize(
    "scheduler",
    [
        EDMEulerScheduler(),
        FlowMatchEulerDiscreteScheduler(),
        FlowMatchHeunDiscreteScheduler(),
        ScoreSdeVeScheduler(),
        UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        DDIMScheduler(**ZERO),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
@pytest.mark.slow
def test_pixel_pipelines_with_other_schedules_are_refused_alike_everywhere(scheduler, tmp_path):
    DDPMPipeline(pixels(), scheduler).save_pretrained(tmp_path)
    sentences = set()
    for read in (describe, load_teacher, lambda path: Unconditional.load(path, CPU)):
        with pytest.raises(ValueError, match=type(scheduler).__name__) as error:
            read(str(tmp_path))
        sentences.add(str(error.value))
    assert len(sentences) == 1


@pytest.mark.slow
def test_latent_unets_take_no_flow_because_their_stock_pipeline_cannot_draw_it(tiny):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny("Stable Diffusion 1.5")[1], safety_checker=None)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="must be variance preserving"):
        StableDiffusion(pipeline)


@pytest.mark.slow
def test_describe_says_what_stock_sampling_clips(tmp_path):
    DDPMPipeline(pixels(), DDPMScheduler()).save_pretrained(tmp_path)
    assert "stock sampling limits x0 (clip_sample); training and students do not" in describe(str(tmp_path))
    assert clipping(DDPMScheduler(clip_sample=False)) is None
    assert clipping(DPMSolverMultistepScheduler(thresholding=True)) == "thresholding"


@pytest.mark.parametrize("kind", [DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler])
def test_solver_options_do_not_change_the_table(kind):
    scheduler = kind(timestep_spacing="trailing", steps_offset=1)
    scheduler.set_timesteps(7)
    assert torch.equal(alphas_cumprod(scheduler), kind().alphas_cumprod)


@pytest.mark.parametrize("kind", [SanaPipeline, WanPipeline, Kandinsky5T2IPipeline, AuraFlowPipeline])
def test_dynamic_shifting_needs_a_pipeline_that_passes_the_shift(kind):
    message = f"use_dynamic_shifting of the scheduler of {kind.__name__} must be False, got True: its call passes no"
    for scheduler in (FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler):
        with pytest.raises(ValueError, match=message):
            check_shift(kind, scheduler(use_dynamic_shifting=True))
    check_shift(kind, FlowMatchEulerDiscreteScheduler())


@pytest.mark.slow
def test_a_family_refuses_a_shift_that_its_pipeline_does_not_pass(text_pipeline):
    pipeline = StableDiffusionPipeline.from_pretrained(text_pipeline, safety_checker=None)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    with pytest.raises(ValueError, match="use_dynamic_shifting of the scheduler of StableDiffusionPipeline must be"):
        load_teacher(pipeline)


@pytest.mark.parametrize("kind", [FluxPipeline, StableDiffusion3Pipeline, LTXPipeline, CogView4Pipeline])
def test_pipelines_that_pass_the_shift_have_it(kind):
    check_shift(kind, FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
