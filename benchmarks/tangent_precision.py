"""Error and cost of tangents in float32, TF32 and bf16, on a GPU (on a CPU, float32 and bf16 only).

    python -m benchmarks.tangent_precision [--networks ...]

The networks are those of `benchmarks.tangent`, and Stable Diffusion's UNets at full size with random weights. The error
is |result - exact| / |exact| of the derivative, where exact is a central difference in float64. `flash` is the fused
kernel of the package jvp-flash-attention. Writes tangent_precision.md to benchmarks/results.
"""

import argparse
import functools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from benchmarks.full_size import randomise
from benchmarks.support.options import check_counts
from benchmarks.tangent import medians, reference
from benchmarks.tangent_networks import IMAGE_NETWORKS, MEDIA_NETWORKS, Case
from distill.exporting.distill_json import device_name
from distill.methods.jvp import finite_difference, tangent
from eval.pipelines.latency import synchronize

RESULTS = Path(__file__).parent / "results"


def sd15() -> Case:
    """The UNet of Stable Diffusion 1.5, batch 2."""
    with torch.device("meta"):
        network = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    network = randomise(network.to_empty(device="cpu"))
    return Case(network, {"encoder_hidden_states": torch.randn(2, 77, 768)}, (2, 4, 64, 64))


NETWORKS: dict[str, Callable[[], Case]] = {**IMAGE_NETWORKS, **MEDIA_NETWORKS, "Stable Diffusion 1.5": sd15}


def methods(device: torch.device) -> dict[str, Callable[..., tuple[Tensor, Tensor]]]:
    """The tangents by name."""
    found: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {}
    for precision in ("float32", "tf32", "bf16") if device.type == "cuda" else ("float32", "bf16"):
        found[precision] = tangent("jvp", device, precision)[0]
        with suppress(ValueError):  # no CUDA or no package
            found[f"{precision}, flash"] = tangent("jvp_flash", device, precision)[0]
    return found | {"finite difference, float32": finite_difference}


def measure(name: str, device: torch.device, repeats: int) -> list[str]:
    """Cells of a table: milliseconds, error and peak memory of each method."""
    torch.manual_seed(0)
    case = NETWORKS[name]()
    network = case.network.eval().to(device).requires_grad_(False)
    if name != "Stable Diffusion 1.5":
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    cond = {key: value.to(device) for key, value in case.cond.items()}
    shape, batch = case.shape, case.shape[0]
    point = torch.randn(shape, device=device), torch.rand(batch, device=device)
    direction = torch.randn(shape, device=device), torch.ones(batch, device=device)

    def function(x: Tensor, t: Tensor) -> Tensor:
        return case.call(network, x, 1000 * t, {key: value.to(x.dtype) for key, value in cond.items()})

    def synchronised(method: Any) -> None:
        method(function, point, direction)
        synchronize(device)

    exact = reference(network, function, point, direction)
    errors, peaks = dict[str, float](), dict[str, float]()
    calls: dict[str, Callable[[], Any]] = {}
    for key, method in methods(device).items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        derivative = method(function, point, direction)[1].double()
        errors[key] = ((derivative - exact).norm() / exact.norm()).item()
        peaks[key] = (torch.cuda.max_memory_allocated() - before) / 2**20 if device.type == "cuda" else 0.0
        calls[key] = functools.partial(synchronised, method)
    seconds = medians(calls, repeats)
    return [f"{seconds[key] * 1000:.1f} ms, {errors[key]:.1e}" + f", {peaks[key]:.0f} MB" * (peaks[key] > 0)
            for key in calls]  # fmt: skip


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats (default: 5)")
    args = parser.parse_args()
    check_counts(parser, args)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = list(methods(device))
    lines = ["| network | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    for name in args.networks:
        lines.append(f"| {name} | " + " | ".join(measure(name, device, args.repeats)) + " |")
        print(lines[-1], flush=True)
    text = "# Precision of tangents\n\n`python -m benchmarks.tangent_precision`: time, error against float64 and peak "
    text += (
        f"memory of a derivative\nof float32 networks with random weights, batch 2 or 4. {device_name(device)}, torch "
    )
    text += f"{torch.__version__}.\n\n"
    (RESULTS / "tangent_precision.md").write_text(text + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
