"""Any network is an extractor: by file, by name with a weights file; what is not here is one message."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maskgen.core.errors import UserError
from maskgen.core.pixels import to_float, to_uint8
from maskgen.core.rng import Rng
from maskgen.evaluation.protocols.protocol import build, is_protocol

CPU = torch.device("cpu")


def images(n: int = 3, channels: int = 3) -> Tensor:
    return to_uint8(Rng.stream("images").uniform((n, channels, 20, 24)))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Mean()).save(str(tmp_path / "mean.pt"))
    return tmp_path / "mean.pt"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_torchscript_file_gets_the_images_as_they_are(script: Path, channels: int) -> None:
    assert is_protocol(str(script))
    extractor = build(str(script), None, CPU)
    assert extractor.protocol == "mean.pt"
    x = images(channels=channels)
    torch.testing.assert_close(extractor(x).pool, to_float(x).mean((2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small"])
def test_a_torchvision_model_takes_a_weights_file(tmp_path: Path, name: str) -> None:
    from torchvision.models import get_model

    model = get_model(name, weights=None)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    if name.startswith("squeeze"):
        with pytest.raises(UserError, match="no linear layer"):
            build(f"torchvision:{name}", str(tmp_path / "w.pth"), CPU)
        return
    extractor = build(f"torchvision:{name}", str(tmp_path / "w.pth"), CPU)
    found = extractor(images())
    assert extractor.protocol == f"torchvision:{name}"
    assert found.pool.shape == (3, 1024)
    assert found.logits is not None
    assert found.logits.shape == (3, 1000)


@pytest.mark.slow
def test_a_timm_model_takes_a_weights_file(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("mobilenetv3_small_050", pretrained=False)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    extractor = build("timm:mobilenetv3_small_050", str(tmp_path / "w.pth"), CPU)
    assert extractor(images()).pool.shape == (3, 1024)
    with pytest.raises(UserError, match="timm has no model 'nonsense'"):
        build("timm:nonsense", None, CPU)


@pytest.mark.slow
def test_dinov2_is_read_from_a_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dino")
    extractor = build(f"dinov2:{tmp_path / 'dino'}", None, CPU)
    assert extractor(images()).pool.shape == (3, 16)
    assert extractor.resize == "PyTorch bicubic to 224, antialiased"


def test_two_networks_of_one_name_are_told_apart_by_their_weights(script: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "mean.pt"
    other.parent.mkdir()

    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x.mean((2, 3))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Double(), torch.zeros(1, 3, 4, 4)).save(str(other))
    one, two = (build(str(file), None, CPU).identity for file in (script, other))
    assert one["protocol"] == two["protocol"]
    assert one["weights"] != two["weights"]


def test_what_is_not_here_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "bad.pt").write_bytes(b"not a network")
    cases = {
        "none.pt": "no such TorchScript file",
        str(tmp_path / "bad.pt"): "is not TorchScript",
        "torchvision:resnet999": "torchvision has no classifier",
        "dinov2:facebook/dinov2-large": "give the folder as --weights",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            build(name, None, CPU)
        assert "\n" not in str(caught.value)
