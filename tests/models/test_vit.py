from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.checkpoints.checkpoint import load_model, read_checkpoint
from maskgen.checkpoints.convert.conversion import run
from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.models import MODELS
from maskgen.models.vit import ViTClassifier
from maskgen.sample.probe_features import encoder_of
from maskgen.train.optim import rate_scales
from tests.cases import each

SIZES = {"width": 32, "depth": 2, "heads": 4, "patch": 4}
KINDS: dict[str, dict[str, Any]] = {
    "MAE's": {},
    "of the class token": {"pool": "class"},
    "SimMIM's": {"positions": "relative", "layer_scale": 0.1},
}
every_kind = each("keys", KINDS.values())


def images(n: int, side: int = 12) -> Tensor:
    return Rng.stream("images", n).uniform((n, 3, side, side)).float()


def build(**keys: object) -> ViTClassifier:
    torch.manual_seed(0)
    model = MODELS.build({"type": "vit", **SIZES, **keys}, image_shape=(3, 12, 12), n_classes=5)
    assert isinstance(model, ViTClassifier)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1, 0.2)
    nn.init.normal_(model.head.weight, std=0.2)
    return model.eval()


@every_kind
def test_logits_are_the_head_on_the_features_of_each_image_alone(keys: dict[str, Any]) -> None:
    model, x = build(**keys), images(3)
    assert model.features(x).shape == (3, 32)
    torch.testing.assert_close(model(x), model.head(model.features(x)))
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-4, atol=1e-5)


@every_kind
def test_every_parameter_changes_the_logits(keys: dict[str, Any]) -> None:
    model = build(**keys)
    model(images(2)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.abs().max() > 0), name


def test_without_positions_the_mean_of_patches_does_not_see_their_order() -> None:
    model, x = build(), images(2)
    turned = torch.cat([x[:, :, 4:8], x[:, :, :4], x[:, :, 8:]], 2)
    assert not torch.allclose(model(x), model(turned), atol=1e-3)
    assert model.positions is not None
    nn.init.zeros_(model.positions)
    torch.testing.assert_close(model(x), model(turned), rtol=1e-4, atol=1e-5)


@every_kind
def test_rates_fall_block_by_block_and_biases_go_with_their_block(keys: dict[str, Any]) -> None:
    scales = rate_scales(build(**keys), 0.5)
    assert scales["head.weight"] == scales["norm.weight"] == 1
    assert scales["blocks.1.mlp.expand.weight"] == 0.5
    assert scales["blocks.0.mlp.expand.weight"] == 0.25 == scales.get("biases.0.weight", 0.25)
    assert scales["embedding.weight"] == scales["class_token"] == 0.125


def test_an_image_that_is_no_multiple_of_a_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="patch must be at least 1 and divide the image 12x12"):
        build(patch=5)


def published(folder: Path, **more: Tensor) -> Path:
    """A fine-tuned MAE of two blocks, 32 pixels and 3 classes."""
    rng, d = Rng.stream("published"), 384
    shapes = {
        "cls_token": (1, 1, d), "pos_embed": (1, 5, d), "patch_embed.proj.weight": (d, 3, 16, 16),
        "patch_embed.proj.bias": (d,), "fc_norm.weight": (d,), "fc_norm.bias": (d,), "head.weight": (3, d),
        "head.bias": (3,),
    }  # fmt: skip
    for n in range(2):
        matrices = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}
        for part, shape in matrices.items():
            shapes |= {f"blocks.{n}.{part}.weight": shape, f"blocks.{n}.{part}.bias": shape[:1]}
        shapes |= {f"blocks.{n}.norm{k}.{kind}": (d,) for k in (1, 2) for kind in ("weight", "bias")}
    state = {name: 0.05 * rng.fork(name).normal(shape).float() for name, shape in shapes.items()}
    torch.save({"model": state | more}, folder / "mae_finetuned.pth")
    return folder / "mae_finetuned.pth"


def test_a_fine_tuned_file_becomes_a_classifier_whose_features_are_probed(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(run(str(published(tmp_path)), str(tmp_path / "c")))
    assert checkpoint.recipe.task == "classifier"
    assert checkpoint.classes == ("0", "1", "2")
    assert checkpoint.image_shape == (3, 32, 32)
    network: Any = load_model(checkpoint)[0].eval()
    encoder = encoder_of(checkpoint, "c", 0, torch.device("cpu"))
    picture = (255 * images(2, 32)).byte()
    torch.testing.assert_close(encoder(picture), network.features(picture / 255).detach())
    with pytest.raises(UserError, match="one vector; leave out --block and --cells"):
        encoder_of(checkpoint, "c", 0, torch.device("cpu"), 2)


def test_a_classifier_takes_no_tokenizer_and_no_other_tensor(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no tokenizer; leave out --tokenizer"):
        run(str(published(tmp_path)), str(tmp_path / "c"), tokenizer="x")
    file = published(tmp_path, **{"decoder_norm.weight": torch.ones(2)})
    with pytest.raises(UserError, match=r"decoder_norm\.weight is no tensor of a fine-tuned ViT"):
        run(str(file), str(tmp_path / "c"))
