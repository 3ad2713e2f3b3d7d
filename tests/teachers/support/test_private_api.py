"""Private APIs of dependencies behave as this project expects. A failure names the function to change."""

import copy
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from diffusers import (
    DDPMPipeline,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    ModelMixin,
    SD3Transformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    WanTransformer3DModel,
)
from diffusers.utils import dummy_torch_and_torchsde_objects
from torch import nn

from teachers.support import private_api

CHANGED = "{} has changed or is gone; adapt private_api.{}"


def message(api: str, function: str) -> str:
    return CHANGED.format(api, function)


def test_safe_softmax_is_zero_for_masked_rows():
    assert hasattr(torch, "_safe_softmax"), message("torch._safe_softmax", "safe_softmax")
    scores = torch.tensor([[0.3, -1.0, 2.0], [-torch.inf] * 3])
    found = private_api.safe_softmax(scores, -1)
    torch.testing.assert_close(found[0], torch.softmax(scores[0], -1))
    assert torch.equal(found[1], torch.zeros(3)), message("torch._safe_softmax", "safe_softmax")


def test_packages_that_a_missing_class_needs_are_listed():
    api = "DummyObject._backends"
    found = private_api.required_packages(dummy_torch_and_torchsde_objects.CosineDPMSolverMultistepScheduler)
    assert found == ("torchsde",), message(api, "required_packages")
    assert private_api.required_packages(UNet2DModel) == ()


def test_declarations_of_a_network_are_inherited():
    source = WanTransformer3DModel(num_attention_heads=1, attention_head_dim=12, num_layers=1, ffn_dim=8, text_dim=8)
    api, function = "ModelMixin._keep_in_fp32_modules", "kept_in_float32"
    assert "scale_shift_table" in private_api.kept_in_float32(source), message(api, function)
    assert private_api.kept_in_float32(nn.Linear(1, 1)) == ()
    network = ModelMixin()
    private_api.inherit_declarations(network, source)
    for function in ("kept_in_float32", "unsplittable_blocks", "repeated_blocks", "supports_gradient_checkpointing"):
        read = getattr(private_api, function)
        assert read(network) == read(source) and read(source), message(function, "inherit_declarations")


def test_softmax_derivative_is_exact():
    api = "aten._softmax_backward_data"
    assert hasattr(torch.ops.aten, "_softmax_backward_data"), message(api, "softmax_derivative")
    scores, direction = torch.randn(2, 4, 5, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64)
    value, expected = torch.func.jvp(lambda x: torch.softmax(x, -1), (scores,), (direction,))
    found = private_api.softmax_derivative(direction, value, -1)
    torch.testing.assert_close(found, expected, msg=lambda text: f"{message(api, 'softmax_derivative')}: {text}")


def test_fused_adamw_equals_the_public_optimizer():
    api = "torch._fused_adamw_"
    assert hasattr(torch, "_fused_adamw_"), message(api, "fused_adamw")
    parameters = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4))]
    reference = copy.deepcopy(parameters)
    optimizer = torch.optim.AdamW(reference, lr=0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.02, fused=True)
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for number in range(1, 4):
        gradients = [torch.randn_like(p) for p in parameters]
        for parameter, gradient in zip(reference, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        with torch.no_grad():
            private_api.fused_adamw(
                [p.data for p in parameters],
                gradients,
                first,
                second,
                [torch.tensor(float(number)) for _ in parameters],
                lr=0.1,
                beta1=0.8,
                beta2=0.9,
                eps=1e-6,
                weight_decay=0.02,
                amsgrad=False,
                maximize=False,
                grad_scale=None,
                found_inf=None,
            )
    pairs = zip(parameters, reference, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), message(api, "fused_adamw")


def test_recompile_limit_only_rises(monkeypatch):
    from torch._dynamo import config

    api = "torch._dynamo.config.recompile_limit"
    assert hasattr(config, "recompile_limit"), message(api, "raise_recompile_limit")
    with config.patch(recompile_limit=8):
        private_api.raise_recompile_limit(64)
        assert config.recompile_limit == 64, message(api, "raise_recompile_limit")
        private_api.raise_recompile_limit(16)
        assert config.recompile_limit == 64


@pytest.mark.exhaustive
def test_compiler_is_not_loaded_by_torch_alone():
    code = (
        "import torch; from teachers.support.private_api import compiler_is_loaded as loaded; before = loaded(); "
        "torch.compile(lambda x: x, backend='eager')(torch.ones(1)); print(before, loaded())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"], message("the module torch._dynamo", "compiler_is_loaded")


def test_reset_accelerate_allows_another_precision():
    from accelerate.state import AcceleratorState, GradientState

    for state in (AcceleratorState, GradientState):
        assert hasattr(state, "_reset_state"), message(f"{state.__name__}._reset_state", "reset_accelerate")
    for precision in ("bf16", "no"):
        private_api.reset_accelerate()
        found = Accelerator(cpu=True, mixed_precision=precision).mixed_precision
        assert found == precision, message("AcceleratorState._reset_state", "reset_accelerate")
    private_api.reset_accelerate()


def test_layers_of_peft_follow_a_shared_list_of_adapters():
    peft = pytest.importorskip("peft")
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    x = torch.randn(2, 3)
    plain = network(x)
    config = peft.LoraConfig(r=2, target_modules="0|1", init_lora_weights=False)
    peft.inject_adapter_in_model(config, network, "a")
    active: list[str] = []
    api = "peft's _active_adapter"
    for layer in network:
        assert hasattr(layer, "_active_adapter"), message(api, "set_active_adapters")
        private_api.set_active_adapters(layer, active)
    assert torch.equal(network(x), plain), message(api, "set_active_adapters")
    active.append("a")
    assert not torch.allclose(network(x), plain), message(api, "set_active_adapters")
    assert list(network[0].active_adapters) == ["a"]


def test_gradient_checkpointing_support_is_declared():
    api = "diffusers' _supports_gradient_checkpointing"
    assert hasattr(ModelMixin, "_supports_gradient_checkpointing"), message(api, "supports_gradient_checkpointing")
    with torch.device("meta"):
        supported = UNet2DModel(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
                                down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    assert private_api.supports_gradient_checkpointing(supported), message(api, "supports_gradient_checkpointing")
    assert private_api.checkpointing_function(supported.mid_block) is None
    supported.enable_gradient_checkpointing()
    assert private_api.checkpointing_function(supported.down_blocks[0]), message(
        "diffusers' _gradient_checkpointing_func", "checkpointing_function"
    )
    private_api.disable_gradient_checkpointing(supported)
    assert not private_api.supports_gradient_checkpointing(copy.deepcopy(supported))
    assert private_api.supports_gradient_checkpointing(type(supported))
    assert not private_api.supports_gradient_checkpointing(nn.Linear(1, 1))


def test_repeated_blocks_are_declared():
    for cls, block in (
        (UNet2DConditionModel, "BasicTransformerBlock"),
        (FluxTransformer2DModel, "FluxTransformerBlock"),
    ):
        assert block in private_api.repeated_blocks(cls), message("diffusers' _repeated_blocks", "repeated_blocks")
    assert private_api.repeated_blocks(nn.Linear(1, 1)) == ()


def test_unsplittable_blocks_are_declared():
    for cls, block in (
        (SD3Transformer2DModel, "JointTransformerBlock"),
        (FluxTransformer2DModel, "FluxTransformerBlock"),
    ):
        api = "diffusers' _no_split_modules"
        assert block in private_api.unsplittable_blocks(cls), message(api, "unsplittable_blocks")
    assert private_api.unsplittable_blocks(DiTTransformer2DModel) == ()


def test_lora_components_are_those_that_diffusers_loads_lora_files_into():
    found = private_api.lora_components(StableDiffusionXLPipeline)
    note = message("_lora_loadable_modules", "lora_components")
    assert set(found) == {"unet", "text_encoder", "text_encoder_2"}, note
    assert list(private_api.lora_components(DDPMPipeline)) == []
