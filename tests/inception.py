"""Inception networks of the right layout with random weights, as files: every protocol's own code can then run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from maskgen.evaluation.protocols.weight_files import INCEPTION, INCEPTION_SCRIPT


def random_inception() -> Any:
    """torchvision's Inception with the blocks of FID, its activations kept at a steady scale."""
    from cleanfid import inception_pytorch

    state: dict[str, Tensor] = {}

    def load(*_: Any, **__: Any) -> dict[str, Tensor]:
        return state

    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        with (
            patch.object(inception_pytorch, "load_state_dict_from_url", load),
            patch.object(nn.Module, "load_state_dict", lambda *_, **__: None),
        ):
            net = inception_pytorch.fid_inception_v3()
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return net.eval()


class Script(nn.Module):
    """The interface of NVIDIA's TorchScript Inception: `layers` on images of 299, `forward` on bytes of any size."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        blocks = [net.Conv2d_1a_3x3, net.Conv2d_2a_3x3, net.Conv2d_2b_3x3, nn.MaxPool2d(3, 2)]
        blocks += [net.Conv2d_3b_1x1, net.Conv2d_4a_3x3, nn.MaxPool2d(3, 2)]
        mixed = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
        blocks += [getattr(net, f"Mixed_{name}") for name in mixed]
        self.layers = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d((1, 1)))

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        size = 299
        x = nn.functional.interpolate(x, (size, size), mode="bilinear", align_corners=False)
        return self.layers((x - 128) / 128)


def write(folder: Path) -> None:
    """Both published files, under their names."""
    net = random_inception()
    torch.save(net.state_dict(), folder / INCEPTION.names[0])
    example = torch.zeros(1, 3, 299, 299)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(Script(net).eval())
    script(example)
    script.save(str(folder / INCEPTION_SCRIPT.names[0]))
