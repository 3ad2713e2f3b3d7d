"""The memory plan against allocations on real tensors, and its output."""

import dataclasses
import re

import lpips
import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn

from distill.config.recipe import Recipe, method_options
from distill.config.sections import DTYPES, TeacherRecipe, TrainRecipe
from distill.data.batch import Batch
from distill.data.batch_random import BatchRandom
from distill.memory import print_memory, read_processes
from distill.training import memory_plan
from distill.training.meta_device import META, MemoryTracker, patch_meta_ops
from eval.metrics import perceptual
from teachers.families.stable_diffusion import StableDiffusion
from teachers.networks.adapters import unwrap
from teachers.networks.checkpointing import checkpoint_activations
from teachers.networks.storage import without_autocast

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "tier", "checkpointing"),
    [
        *(("dmd", "full", "true"), ("dmd", "lora", "false"), ("scm", "lora", "true"), ("sid", "full", "false")),
        *[("scm", "full", "false"), ("sid", "lora", "true"), ("f_distill", "lora", "true"), ("lcm", "lora", "true")],
        *[("dmd", "full", "false"), ("dmd", "lora", "true"), ("scm", "full", "true"), ("scm", "lora", "false")],
    ],
)
@pytest.mark.first_by_default
def test_plan_equals_the_peak_of_a_phase(lora_recipe, method, tier, checkpointing):
    """The peak of live tensors on the CPU, counted in the same way, to 5%, because kernels allocate buffers too."""
    plain = {
        "dmd": ["method.gan_weight=0", "method.r1_weight=0", "method.regression_weight=0"],
        "sid": ["method.gan_weight=0"],
    }.get(method, [])
    plain += ["teacher.precision=auto"] if method in ("dmd", "scm") else []
    run = lora_recipe(method, *plain, f"memory.tier={tier}", f"memory.checkpointing={checkpointing}")
    planned = memory_plan.plan(run, 4)
    teacher = StableDiffusion.load(run.teacher.path, CPU, DTYPES[run.teacher.precision])
    if tier == "lora":
        teacher.enable_lora(run.memory.rank)
    if checkpointing == "true":
        checkpoint_activations(teacher.denoiser.network)
    cls, options = method_options(run)
    distiller = cls(teacher, 2.0, options)
    cond = {key: value.float() for key, value in teacher.condition(["a coat"] * 4).items()}
    teacher.null_condition(cond)
    latents = torch.randn(4, *teacher.shape)
    peaks = []
    for phase in dict.fromkeys(distiller.phases(memory_plan.LATE_STEP)):
        known = [*distiller.parameters(), *unwrap(teacher.denoiser.network).parameters(), latents, *cond.values()]
        with MemoryTracker(known, CPU) as tracker:
            batch = Batch(cond, BatchRandom((phase,), 0, 4, 4, CPU), latents)
            distiller(phase, batch, memory_plan.LATE_STEP)[0].backward()
        peaks.append(tracker.peak)
        distiller.zero_grad(set_to_none=True)
    assert planned.gradients + planned.activations == pytest.approx(max(peaks), rel=0.05)
    trained = {p for modules in distiller.networks().values() for m in modules for p in m.parameters()}
    assert planned.optimizer == 8 * sum(p.numel() for p in trained)
    modules = unwrap(teacher.denoiser.network), distiller
    assert planned.weights == sum(x.nbytes for x in {x for m in modules for x in (*m.parameters(), *m.buffers())})


@pytest.mark.slow
def test_a_regression_by_lpips_is_planned(lora_recipe, monkeypatch):
    network = lpips.LPIPS(net="squeeze", pretrained=False, pnet_rand=True, verbose=False)
    monkeypatch.setattr(perceptual, "is_on_machine", lambda _: True)
    monkeypatch.setattr(perceptual.lpips, "LPIPS", lambda **_: network)
    monkeypatch.setattr(perceptual, "packaged_weights", lambda _: None)
    options = [
        "method.gan_weight=0",
        "method.r1_weight=0",
        "method.regression_pairs=4",
        "method.regression_distance=lpips",
    ]
    plans = [
        memory_plan.plan(lora_recipe("dmd", "memory.tier=full", *options, f"method.regression_weight={weight}"), 1)
        for weight in (0.0, 0.25)
    ]
    assert plans[1].activations > plans[0].activations


@pytest.mark.slow
def test_printed_plan_shows_which_tier_fits(lora_recipe, monkeypatch, capsys):
    run = lora_recipe("dmd", "memory.tier=full")
    sizes = {"full": 30, "lora": 10}
    monkeypatch.setattr(
        memory_plan, "plan", lambda r, n, p: memory_plan.MemoryPlan(sizes[r.memory.tier] << 30, 0, 0, 0, 0, 0)
    )
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 20 << 30)
    memory_plan.print_plan(run, memory_plan.ONE_PROCESS, CPU)
    assert not capsys.readouterr().out  # no plan for small networks
    monkeypatch.setattr(memory_plan, "MIN_PLANNED", 0)
    memory_plan.print_plan(run, memory_plan.ONE_PROCESS, CPU)
    title, _, full, lora, advice = capsys.readouterr().out.splitlines()
    assert "4 samples at a time; 20.0 free" in title
    assert full.endswith("30.00  does not fit (this run)") and lora.endswith("10.00  fits")
    assert "memory.checkpointing=true" in advice and "memory.tier=lora (fits)" in advice
    monkeypatch.setattr(memory_plan, "plan", lambda *a: 1 / 0)
    memory_plan.print_plan(run, memory_plan.ONE_PROCESS, CPU)
    assert "the memory plan of this run failed (ZeroDivisionError" in capsys.readouterr().out


@pytest.mark.exhaustive
def test_the_plan_of_several_processes_counts_buckets_or_divides_what_is_sharded(lora_recipe):
    """DDP keeps one set of gradient buckets for each phase. FSDP2 divides weights, EMA, moments and gradients."""
    run = lora_recipe("dmd", "memory.tier=full", "method.gan_weight=0", "method.r1_weight=0")
    one = memory_plan.plan(run, 2)
    student = sum(p.nbytes for p in StableDiffusion.load(run.teacher.path, CPU).student().parameters())
    assert one.communication == 0 and one.gradients == student
    ddp = memory_plan.plan(run, 2, memory_plan.Processes(2))
    assert ddp == dataclasses.replace(one, communication=student)  # two phases train a network of this size each
    options = FullyShardedDataParallelPlugin(fsdp_version=2)
    sharded = memory_plan.plan(run, 2, memory_plan.Processes(4, options))
    assert sharded.optimizer == one.optimizer // 4 and sharded.ema == one.ema // 4
    assert sharded.weights == student + 2 * student // 4  # the frozen teacher is complete
    assert 0 < sharded.communication < 2 * student + 3 * student
    shared = dataclasses.replace(run, train=dataclasses.replace(run.train, shard_teacher=True))
    assert memory_plan.plan(shared, 2, memory_plan.Processes(4, options)).weights == 3 * student // 4


def test_attention_is_planned_as_fused_however_it_is_called():
    """Transformers of diffusers pass query, key and value by name."""
    query, key, value = (torch.empty(1, 2, 256, 8, device=META) for _ in range(3))
    for call in (lambda f: f(query, key, value), lambda f: f(query=query, key=key, value=value, is_causal=False)):
        with patch_meta_ops("bf16"), MemoryTracker([query, key, value]) as tracker:
            found = call(nn.functional.scaled_dot_product_attention)
        assert (found.shape, found.dtype) == (query.shape, torch.bfloat16)
        assert tracker.peak < 256 * 256 * 2  # less than the scores of one head


def test_the_plan_has_no_autocast_where_training_has_none():
    x, weight = torch.empty(2, 4, device=META), torch.empty(3, 4, device=META)
    with patch_meta_ops("bf16"):
        assert nn.functional.linear(x, weight=weight).dtype == torch.bfloat16
        with without_autocast(META):
            assert nn.functional.linear(x, weight=weight).dtype == torch.float32
        assert nn.functional.rms_norm(x.bfloat16(), (4,)).dtype == torch.float32


@pytest.mark.slow
def test_a_wan_teacher_is_planned(tiny_media):
    family, folder, size = tiny_media("Wan 2.1")
    teacher = TeacherRecipe(str(folder), family, 2.0, size=size)
    run = Recipe("x", teacher, {"name": "scm"}, train=TrainRecipe(precision="bf16", tracker="none"))
    assert memory_plan.plan(run, 1).activations > 0


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_plan_has_autocast_for_convolutions_of_every_rank(kind, rank):
    """Their outputs are half precision on a device, and so they are in the plan."""
    layer = getattr(nn, f"{kind}{rank}d")(4, 6, 3, padding=1)
    x = torch.randn(2, 4, *[8] * rank)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
    with patch_meta_ops("bf16"), MemoryTracker([], META) as tracker:
        found = layer.to(META)(x.to(META))
    assert found.dtype == expected.dtype == torch.bfloat16 and found.shape == expected.shape
    assert tracker.peak >= expected.nbytes
    with patch_meta_ops("no"):
        assert layer(x.to(META)).dtype == torch.float32


def test_tensor_keeps_its_methods_after_a_plan():
    """torch 2.12 cannot make a tensor of scalars after `Tensor.__getitem__` was replaced, even if it is restored."""
    mask = torch.ones(3, dtype=torch.bool, device=META)
    with patch_meta_ops("no"):
        values = torch.empty(3, 2, device=META)
        assert bool(mask.any()) and values[mask].shape == (3, 2) and values[~mask].shape == (0, 2)
    assert torch.equal(torch.tensor([torch.tensor(1.0), torch.tensor(2.0)]), torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("count", ["0", "-1", "many", "[2]"])
def test_number_of_processes_in_a_configuration_is_checked(count, tmp_path):
    config = tmp_path / "accelerate.yaml"
    config.write_text(f"num_processes: {count}\n")
    with pytest.raises(ValueError, match=re.escape(str(config))):
        read_processes(config, None)


def test_processes_must_share_the_batch_equally(lora_recipe):
    recipe = lora_recipe("scm", "train.batch_size=12", "train.accumulation=2")
    assert memory_plan.Processes(3).samples(recipe) == 2
    with pytest.raises(ValueError, match=r"must be a multiple of the number of processes \(4\), got 6"):
        print_memory(recipe, count=4)
