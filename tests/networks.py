"""Networks for tests: inputs, and weights that hide no faults."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TOLERANCE = 2e-5  # float32 rounding through the network, for maps with a spread of about one


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def as_if_trained(network: nn.Module) -> nn.Module:
    """Switch to evaluation mode, and replace the zeros and ones of a new network, which could hide a fault."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "attention.offsets" in name or "attention.weights" in name or name.endswith("shares"):
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif name in ("detect.weight", "mask.weight"):
                parameter.mul_(20.0)  # maps with a spread of about one, as after training
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return network.eval()
