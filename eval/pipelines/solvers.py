"""The solver that a teacher is given for few steps."""

from diffusers import DDIMPipeline, DPMSolverMultistepScheduler, EDMDPMSolverMultistepScheduler

from eval.pipelines.networks import Pipeline
from teachers.core.schedule import alphas_cumprod, betas, edm_options, is_edm
from teachers.core.scheduler_config import clipping, is_shifted, own_value, prediction_type
from teachers.loading.source import AUTOENCODERS


def use_modern_solver(pipe: Pipeline) -> str | None:
    """Replace a pipeline's scheduler by the usual choice for few steps.

    The solver is DPM-Solver++ (2M) (Lu et al., arXiv 2211.01095) with trailing timesteps and a first-order last step.
    Its noise levels are the old scheduler's own table; `from_config` would lose the defaults of the old class. Of EDM's
    schedulers it keeps the preconditioning, with the noise levels of Karras et al. (arXiv 2206.00364, equation 5).

    Args:
        pipe: The pipeline, changed in place.

    Returns:
        The solver's name, or None if the scheduler stays: that of `DDIMPipeline`, flow matching, tables with a shifted
        signal-to-noise ratio, and others that are not variance preserving.
    """
    if is_edm(pipe.scheduler):  # the exponential schedule would begin a single step at sigma_min
        options = edm_options(pipe.scheduler) | {"sigma_schedule": "karras"}
        pipe.scheduler = EDMDPMSolverMultistepScheduler(**options, solver_order=2, lower_order_final=True)
        return "DPM-Solver++"
    old, table = pipe.scheduler.config, alphas_cumprod(pipe.scheduler)
    # DDIMPipeline passes arguments of its own scheduler, and shifted tables belong to video models with own solvers.
    if table is None or isinstance(pipe, DDIMPipeline) or is_shifted(pipe.scheduler):
        return None
    # Latent pipelines drop a learned variance before the scheduler.
    learned = old.get("variance_type") in ("learned", "learned_range") and not {*AUTOENCODERS} & {*pipe.components}
    # Pixel-space schedulers clip x0; dynamic thresholding with this maximum is the same clipping.
    limit = clipping(pipe.scheduler)
    thresholds = limit == "thresholding"
    pipe.scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=old["num_train_timesteps"],
        trained_betas=betas(table),
        prediction_type=prediction_type(pipe.scheduler),
        variance_type=old["variance_type"] if learned else None,
        rescale_betas_zero_snr=bool(own_value(pipe.scheduler, "rescale_betas_zero_snr")),
        algorithm_type="dpmsolver++",
        solver_order=2,
        lower_order_final=True,
        use_karras_sigmas=False,
        timestep_spacing="trailing",
        thresholding=limit is not None,
        dynamic_thresholding_ratio=old["dynamic_thresholding_ratio"] if thresholds else 0.995,
        sample_max_value=old["sample_max_value"] if thresholds else float(old.get("clip_sample_range", 1.0)),
    )
    return "DPM-Solver++"
