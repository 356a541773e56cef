"""Laws of CRATE-MAE: sizes, sparse coding, one projection for queries, keys and values."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.models import MODELS
from maskgen.nn.crate import SparseCoding
from maskgen.nn.mixers.attention import AttentionSettings
from maskgen.nn.mixers.self_attention import SelfAttention
from maskgen.nn.mixers.subspace import SubspaceAttention
from maskgen.recipes.load import load_recipe
from tests.cases import each

GRID, N = (4, 4), 3
x_0 = Rng.stream("x").normal((N, 16, 6))
is_masked = torch.zeros(N, 16, dtype=torch.bool)
is_masked[0, :12] = is_masked[1, 4:] = is_masked[2, ::2] = True
x_t = x_0.masked_fill(is_masked[..., None], torch.nan)


def crate() -> Any:
    torch.manual_seed(0)
    spec = {"type": "crate", "width": 16, "depth": 2, "heads": 2}
    return MODELS.build(spec, token_width=6, grid=GRID).eval()


def test_the_published_base_has_its_number_of_values() -> None:
    """The public file also holds fixed positions, twice, and a projection that is never called."""
    model: Any = load_recipe("image/imagenet-crate-b").model
    with torch.device("meta"):
        network = MODELS.build(model, token_width=768, grid=(14, 14))
    fixed, unused = 2 * 197 * 768, 768 * 768 + 768
    assert sum(parameter.numel() for parameter in network.parameters()) + fixed + unused == 44_638_464


def test_a_coding_step_lowers_the_lasso_objective_and_its_codes_are_not_negative() -> None:
    torch.manual_seed(0)
    coding = SparseCoding(8, 0.1, 0.5)
    with torch.no_grad():
        coding.dictionary /= torch.linalg.matrix_norm(coding.dictionary, 2)
    x = torch.rand(2, 5, 8)  # not negative, so that the step is from a feasible point

    def lasso(z: Tensor) -> Tensor:
        return (x - F.linear(z, coding.dictionary)).square().sum() / 2 + 0.5 * z.abs().sum()

    z = coding(x).detach()
    assert float(z.min()) >= 0
    assert float(lasso(z)) < float(lasso(x))
    d = coding.dictionary
    expected = F.relu(x + 0.1 * (x @ d - (x @ d.T) @ d) - 0.05)
    assert torch.allclose(z, expected, atol=1e-6)


def test_without_a_penalty_and_with_an_orthogonal_dictionary_codes_are_kept() -> None:
    coding = SparseCoding(8, 1.0, 0.0)
    with torch.no_grad():
        coding.dictionary.copy_(torch.eye(8))
    x = torch.rand(1, 3, 8)
    assert torch.allclose(coding(x), x, atol=1e-6)


def test_subspace_attention_is_attention_with_one_projection() -> None:
    settings = AttentionSettings(16, 2)
    shared, plain = SubspaceAttention(settings), SelfAttention(settings)
    assert plain.qkv is not None
    with torch.no_grad():
        plain.qkv.weight.copy_(shared.subspaces.weight.repeat(3, 1))
        plain.qkv.bias.zero_()
        plain.out.load_state_dict(shared.out.state_dict())
    x = Rng.stream("tokens").normal((2, 5, 16))
    assert torch.allclose(shared(x), plain(x), atol=1e-6)
    assert torch.allclose(shared.head_weights(x), plain.head_weights(x), atol=1e-6)
    assert torch.allclose(shared.weights(x).sum(-1), torch.ones(2, 5), atol=1e-6)


def test_masked_patches_are_predicted_packed_in_order_and_alike_beside_other_rows() -> None:
    network, t = crate(), torch.full((N,), 0.5)
    whole = network(x_t, t).value
    assert whole.shape == (int(is_masked.sum()), 6)
    some = is_masked & (torch.arange(16) % 3 == 0)
    assert torch.allclose(network(x_t, t, where=some).value, whole[some[is_masked]], atol=1e-5)
    given = network(x_t, t, targets=TokenSubset.of(is_masked)).value
    assert torch.equal(given, whole)
    alone = torch.cat([network(x_t[row : row + 1], t[:1]).value for row in range(N)])
    assert torch.allclose(alone, whole, atol=1e-5)


def test_masked_patches_do_not_matter_and_visible_ones_do() -> None:
    network, t = crate(), torch.full((N,), 0.5)
    base = network(x_t, t).value
    assert torch.equal(network((2 * x_0).masked_fill(is_masked[..., None], torch.nan), t).value, base) is False
    hidden = torch.where(is_masked[..., None], torch.nan, x_0)
    assert torch.equal(network(hidden, t).value, base)


@each("name", ["t", "s", "b", "l"])
def test_published_sizes_are_recipes(name: str) -> None:
    recipe = load_recipe(f"image/imagenet-crate-{name}")
    assert isinstance(recipe.model, dict)
    assert recipe.model["type"] == "crate"


def test_features_are_of_unmasked_patches_and_attention_scores_are_shares() -> None:
    network = crate()
    assert network.features(x_0).shape == (N, 16, 16)
    scores = network.attention_scores(x_0)
    assert scores.shape == (N, 16)
    assert bool((scores.sum(1) < 1).all())
