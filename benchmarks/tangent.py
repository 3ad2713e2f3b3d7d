"""Cost and accuracy of tangents, by method and network, in forwards of the same network.

    python -m benchmarks.tangent [--compile] [--write]
    python -m benchmarks.tangent --media [--write]    # transformers of clips and sounds

Methods are interleaved and medians are compared, so that the ratios are valid on a machine with other load, although
the milliseconds are not. The error is |result - exact| / |exact| of the derivative along (x, t), where t is in [0, 1]
and the timestep is 1000 t; "exact" is a central difference of the network in float64. "func.jvp" is `torch.func.jvp`.
It needs the math attention backend and contiguous GroupNorm inputs, which are set up for it here;
`distill.methods.jvp.jvp` does not need them.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.tangent_networks import BATCH, IMAGE_NETWORKS, MEDIA_NETWORKS
from distill.methods.jvp import finite_difference, jvp

Function = Callable[[Tensor, Tensor], Tensor]
RESULTS = Path(__file__).parent / "results"


def torch_func_jvp(network: nn.Module, function: Function, primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    """PyTorch's forward mode, with the math attention backend and contiguous GroupNorm inputs."""
    hooks = [
        module.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
        for module in network.modules()
        if isinstance(module, nn.GroupNorm)
    ]
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            value, derivative = torch.func.jvp(function, primals, tangents)[:2]
            return value, derivative
    finally:
        for hook in hooks:
            hook.remove()


def reference(network: nn.Module, function: Function, primals: Any, tangents: Any) -> Tensor:
    """The derivative in float64. Meanwhile diffusers' casts of the time embedding to float32 become float64."""
    original: Any = Tensor.to

    def to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return original(x, *[torch.float64 if arg is torch.float32 else arg for arg in args], **kwargs)

    primals, tangents = (tuple(x.double() for x in xs) for xs in (primals, tangents))
    with patch.object(Tensor, "float", Tensor.double), patch.object(Tensor, "to", to):
        network.double()
        derivative = finite_difference(function, primals, tangents, step=1e-6)[1]
    network.float()
    return derivative


def medians(methods: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each function; calls are interleaved and the first round is a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(repeats + 1):
        for name, method in methods.items():
            start = time.perf_counter()
            method()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def measure(name: str, repeats: int, compiled: bool) -> tuple[float, dict[str, float], dict[str, float]]:
    """Milliseconds of a forward, cost of each method in forwards, and error of each method."""
    torch.manual_seed(0)
    case = (IMAGE_NETWORKS | MEDIA_NETWORKS)[name]()
    network = case.network.eval()
    with torch.no_grad():  # some layers of a new network are zero, which would hide errors
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    shape, batch = case.shape, case.shape[0]
    point, direction = (torch.randn(shape), torch.rand(batch)), (torch.randn(shape), torch.ones(batch))

    def function(x: Tensor, t: Tensor) -> Tensor:
        return case.call(network, x, 1000 * t, {key: value.to(x.dtype) for key, value in case.cond.items()})

    def forward() -> None:
        with torch.no_grad():
            function(*point)

    def backward() -> None:
        function(*point).square().mean().backward()
        network.zero_grad()

    tangents: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "func.jvp": lambda: torch_func_jvp(network, function, point, direction),
        "jvp": lambda: jvp(function, point, direction),
        "finite_difference": lambda: finite_difference(function, point, direction),
    }
    if compiled:
        fast = torch.compile(lambda point, direction: jvp(function, point, direction), fullgraph=True)
        tangents["jvp, compiled"] = lambda: fast(point, direction)
    exact = reference(network, function, point, direction)
    errors = {key: ((m()[1].double() - exact).norm() / exact.norm()).item() for key, m in tangents.items()}
    seconds = medians({"forward": forward, **tangents, "forward + backward": backward}, repeats)
    once = seconds.pop("forward")
    return once * 1000, {key: value / once for key, value in seconds.items()}, errors


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="interleaved repeats (default: 9)")
    parser.add_argument(
        "--compile", action="store_true", help="also with torch.compile; warm-up takes minutes on a CPU"
    )
    parser.add_argument("--media", action="store_true", help="transformers of clips and sounds instead of images")
    parser.add_argument("--write", action="store_true", help="write the table to tangent.md or tangent_media.md")
    args = parser.parse_args()
    lines: list[str] = []
    networks = MEDIA_NETWORKS if args.media else IMAGE_NETWORKS
    for name in networks:
        forward, costs, errors = measure(name, args.repeats, args.compile)
        if not lines:
            lines += ["| network | forward, ms | " + " | ".join(costs) + " |", "| --- " * (len(costs) + 2) + "|"]
            print(*lines, sep="\n")
        cells = [f"{cost:.2f}" + (f" ({errors[key]:.0e})" if key in errors else "") for key, cost in costs.items()]
        lines.append(f"| {name} | {forward:.0f} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    if args.write:
        file = RESULTS / ("tangent_media.md" if args.media else "tangent.md")
        RESULTS.mkdir(exist_ok=True)
        command = "python -m benchmarks.tangent" + " --media" * args.media + " --compile" * args.compile + " --write"
        inputs = "the sizes in benchmarks/tangent_networks.py" if args.media else f"batch {BATCH} of 4 x 32 x 32"
        note = (
            "Cost of a derivative along (x, t) in forwards of the same network (no gradients), and in brackets its "
            f"relative\nerror, compared with float64 differences. `{command}`: {inputs}, float32,\n"
            f"{torch.get_num_threads()} CPU thread(s), median of {args.repeats} interleaved repeats, "
            f"torch {torch.__version__}.\n"
        )
        title = "Tangents of video and audio transformers" if args.media else "Tangents"
        file.write_text(f"# {title}\n\n" + note + "\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
