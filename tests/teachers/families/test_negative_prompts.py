"""Teachers with a negative prompt pass to their network what their stock pipelines pass."""

import pytest
import torch

from distill.checks.conditions import condition_checks
from distill.checks.stock import prompts_for, run_stock, use_first_order_sampler
from distill.config.registry import TEACHERS, find
from teachers.loading.source import load_pipeline
from tests.teachers.families.media import KINDS
from tests.teachers.tiny_media import BUILDERS as MEDIA
from tests.teachers.tiny_pipelines import BUILDERS

CPU = torch.device("cpu")
TEXT = [name for name, (family, _) in BUILDERS.items() if family not in ("dit", "unconditional", "edm", "flux")]
NONE = ("ace_step", "flux2")  # their pipelines take no negative prompt
CLIPS = [name for name in KINDS if name != "HunyuanVideo" and MEDIA[name][0] not in NONE]


def null_gaps(family, folder, size=None):
    """The differences of the condition and of the negative prompt's condition from the stock pipeline's."""
    kind = find(TEACHERS, family)
    teacher = kind.load(str(folder), CPU, **kind.size_argument(size))
    plain = {key: value.clone() for key, value in teacher.null_row().items()}
    teacher.set_negative_prompt("a blurry dress")
    assert any(not torch.equal(value, plain[key]) for key, value in teacher.null_row().items())
    pipe = load_pipeline(
        kind.pipelines, str(folder), owners=(kind, *kind.components), **(kind.options | {"dtype": torch.float32})
    )
    use_first_order_sampler(pipe)
    pipe.set_progress_bar_config(disable=True)
    cond = teacher.condition(prompts_for(type(pipe)))
    run = run_stock(pipe, teacher, 2, 3.0)
    return {check.name: check.difference for check in condition_checks(run, teacher, cond, 3.0)}


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT)
@pytest.mark.sampled
def test_negative_prompt_is_encoded_as_in_the_pipeline(name, tiny):
    family, folder = tiny(name)
    gaps = null_gaps(family, folder)
    assert set(gaps) == {"condition", "null condition"} and max(gaps.values()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.sampled
def test_negative_prompt_of_clips_and_sounds_is_encoded_as_in_the_pipeline(name, tiny_media):
    family, folder, size = tiny_media(name)
    gaps = null_gaps(family, folder, size)
    assert set(gaps) == {"condition", "null condition"} and max(gaps.values()) < 1e-5


@pytest.mark.slow
def test_negative_prompt_is_refused_if_the_network_embeds_the_guidance_scale(tiny_media):
    family, folder, size = tiny_media("HunyuanVideo")
    kind = find(TEACHERS, family)
    with pytest.raises(ValueError, match="must be null: this teacher's network receives the guidance scale"):
        kind.load(str(folder), CPU, size=size).set_negative_prompt("noise")


@pytest.mark.slow
def test_negative_prompt_is_refused_where_the_pipeline_takes_none(tiny_media):
    family, folder, size = tiny_media("ACE-Step")
    teacher = find(TEACHERS, family).load(str(folder), CPU, size=size)
    with pytest.raises(ValueError, match="must be null: pipelines of the family AceStep take no negative prompt"):
        teacher.set_negative_prompt("noise")
