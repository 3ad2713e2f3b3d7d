"""Files of weights that a user gives for a feature network."""

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from teachers.support.text import printable

Network = TypeVar("Network", bound=nn.Module)


def load_weights(network: Network, file: Path, expected: str) -> Network:
    """Load a state dict into a network, frozen and in eval mode.

    The file is a .safetensors file or one of `torch.save`; no code in it is run.

    Args:
        network: The network, on any device, "meta" too.
        file: The file.
        expected: What the file must contain, for messages.

    Returns:
        The network in float32.

    Raises:
        ValueError: If there is no such file, it cannot be read, or it does not have exactly the network's weights.
    """
    name = printable(file)
    if not file.is_file():
        raise ValueError(f"there is no file {name}; expected the weights of {expected}")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            stored = load_file(file)
        else:
            stored = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers raise many types for damaged files
        reason = printable(str(error).partition("\n")[0])[:200]
        raise ValueError(f"{name} cannot be read as weights ({reason}); expected those of {expected}") from error
    if not isinstance(stored, dict) or not all(isinstance(value, torch.Tensor) for value in stored.values()):
        raise ValueError(f"{name} contains {type(stored).__name__}, expected a dictionary of the tensors of {expected}")
    counters = {key for key in network.state_dict() if key.endswith("num_batches_tracked")}
    wanted = {key: value.shape for key, value in network.state_dict().items() if key not in counters}
    given = {key: value.shape for key, value in stored.items() if key not in counters}
    wrong = next((key for key in [*wanted, *given] if wanted.get(key) != given.get(key)), None)
    if wrong is not None:
        shapes = [tuple(part[wrong]) if wrong in part else "nothing" for part in (wanted, given)]
        raise ValueError(
            f"{name} must have the weights of {expected}: {printable(wrong)} must be {shapes[0]}, got {shapes[1]}"
        )
    values = {key: value.float() for key, value in stored.items() if key in wanted}
    zeros = {key: torch.tensor(0) for key in counters}
    network.load_state_dict({**values, **zeros}, assign=True)
    return network.eval().requires_grad_(False)
