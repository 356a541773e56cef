"""Pipelines of rows of several streams: what is given stays, every direction decodes, bounds obey the chain rule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import maskgen
from maskgen.checkpoints.checkpoint import MODEL, TOKENIZER, write_checkpoint
from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.data.image.attributes import attributes_of, captions_of
from maskgen.evaluation.metrics.stream_bounds import stream_bound
from maskgen.models.joint import JointTransformer
from maskgen.pipelines.joint import JointPipeline
from maskgen.pipelines.joint_output import map_pixels
from maskgen.processes import StreamDenoiser
from maskgen.recipes.build import DataFacts, build_system
from maskgen.recipes.load import parse_recipe
from maskgen.recipes.rows import row_tokenizer
from maskgen.recipes.tree import RecipeError
from maskgen.tokenizers.joint.rows import CaptionStream, MapStream
from tests.objectives.test_streams import LAW, STATES, TINY, oracle
from tests.tiny import tree

CAPTIONS = ["a dark plain narrow dress", "a light shaded wide bag"]
ROWS = {
    "data": "fashion_attributes",
    "tokenizer": {"type": "pixels", "levels": 3},
    "streams": {"image": {}, "caption": {"tokenizer": "characters", "length": 30}, "label": {}, "map": {"cell": 14}},
    "model": {"type": "joint", "width": 8, "depth": 1, "heads": 2},
    "objective": {"type": "masked_tokens", "ratio_per": "stream", "stream_dropout": {"caption": 0.1}},
    "sampler": {"type": "maskgit", "steps": 2},
}
SHAPE = (1, 28, 28)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> JointPipeline:
    path: Path = tmp_path_factory.mktemp("joint")
    recipe = parse_recipe(ROWS)
    facts = DataFacts(10, SHAPE, n_map_classes=2)
    captions = recipe.build_caption_tokenizer(CAPTIONS)
    captions.save(path / TOKENIZER)
    tokenizer = row_tokenizer(recipe, facts, recipe.build_tokenizer(SHAPE), captions)
    network = build_system(recipe, facts, tokenizer).network
    names = [str(number) for number in range(10)]
    info = {"step": 1, "classes": names, "image_shape": list(SHAPE), "map_classes": ["out", "in"]}
    write_checkpoint(path / "checkpoint-1", recipe, {MODEL: network.state_dict()}, info, path)
    loaded = maskgen.load(path / "checkpoint-1")
    assert isinstance(loaded, JointPipeline)
    return loaded


def picture() -> Tensor:
    return (Rng.stream("picture").uniform(SHAPE) * 3).long().to(torch.uint8) * 127


def test_whatever_is_given_stays_and_the_rest_is_generated(pipeline: JointPipeline) -> None:
    layout = pipeline.tokenizer.layout
    found = pipeline(2, prompt=CAPTIONS[0], seed=3)
    assert found.captions == [CAPTIONS[0]] * 2
    assert found.pixels is not None
    assert found.pixels.shape == (2, *SHAPE)
    assert bool((found.tokens < layout.vocab_size).all())
    own = pipeline.describe(picture())
    assert len(own) == 1
    assert pipeline.segment(torch.stack([picture()] * 2)).shape == (2, 28, 28)
    probabilities = pipeline.classify(picture())
    assert torch.allclose(probabilities.sum(1), torch.ones(1))
    both = pipeline(prompt="a ____ plain narrow dress", image=picture(), hole="left", first="caption", guidance=2)
    assert both.captions is not None
    assert both.captions[0].startswith("a ")
    assert both.captions[0].endswith(" plain narrow dress")
    assert both.pixels is not None
    assert both.pixels[0, :, :, 14:].equal(picture()[:, :, 14:])
    alone = pipeline(1, prompt=CAPTIONS[0], seed=4)
    assert alone.tokens[0].equal(found.tokens[1])  # a row depends on its own seed alone


def test_what_rows_do_not_hold_is_refused_by_name(pipeline: JointPipeline) -> None:
    with pytest.raises(UserError, match="hold image, caption, label, map, no video"):
        pipeline.nll("video", image=picture())
    with pytest.raises(UserError, match="has room for 30"):
        pipeline(prompt="a dark plain narrow dress" * 2)
    with pytest.raises(RecipeError, match=r"streams\.map: data digits has the parts image, label"):
        parse_recipe(ROWS | {"data": "digits", "streams": {"image": {}, "map": {}}})
    with pytest.raises(RecipeError, match="choose from joint"):
        parse_recipe(tree(streams={"image": {}, "label": {}}))


def test_maps_and_captions_come_back_from_their_tokens() -> None:
    maps = (Rng.stream("maps").uniform((5, 8, 8)) * 3).long()
    stream = MapStream(3, (8, 8), cell=1, patch=2)
    assert stream.stream.vocab_size == 81
    assert stream.decode(stream.encode(maps)).equal(maps)
    coarse = MapStream(3, (8, 8), cell=2, patch=2)
    assert coarse.decode(coarse.encode(coarse.decode(coarse.encode(maps)))).equal(coarse.decode(coarse.encode(maps)))
    assert map_pixels(torch.tensor([[[0, 1, 2]]]), 3).tolist() == [[[[0, 128, 255]]]]
    captions = CaptionStream(parse_recipe(ROWS).build_caption_tokenizer(CAPTIONS), 30)
    assert captions.decode(captions.encode(CAPTIONS)) == CAPTIONS
    open_end = captions.gapped("a dark...")
    assert int((open_end == captions.stream.vocab_size).sum()) == 30 - len("a dark")


def test_captions_name_what_the_picture_shows() -> None:
    images = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    images[0, 0, 4:24, 12:16], images[1, 0, 12:16, 2:26] = 100, 220
    assert attributes_of(images) == [("dark", "plain", "narrow"), ("light", "plain", "wide")]
    assert captions_of(images, torch.tensor([3, 8]))[0] == "a dark plain narrow dress"


def test_bounds_of_exact_posteriors_are_the_probabilities_and_obey_the_chain_rule() -> None:
    rows = TINY.join({"a": STATES[:, :2], "b": STATES[:, 2:]})
    rng, n = Rng.stream("bounds"), 512
    exact = StreamDenoiser(oracle, TINY)  # type: ignore[arg-type]

    def bound(target: str, given: tuple[str, ...]) -> Tensor:
        return stream_bound(exact, TINY, rows, target, given, rng, n).mean(1)

    law = LAW.flatten()
    of_a = LAW.sum(2)[STATES[:, 0], STATES[:, 1]]
    of_b = LAW.sum((0, 1))[STATES[:, 2]]
    assert bound("b", ()) == pytest.approx(-of_b.log(), abs=1e-6)  # one token: nothing is estimated
    assert bound("b", ("a",)) == pytest.approx(-(law / of_a).log(), abs=1e-6)
    # pairs of tokens are bounded in the mean over orders, each of which is exact
    assert bound("a", ()) == pytest.approx(-of_a.log(), abs=0.15)
    assert bound("a", ("b",)) == pytest.approx(-(law / of_b).log(), abs=0.15)
    both, other = bound("a", ()) + bound("b", ("a",)), bound("b", ()) + bound("a", ("b",))
    assert both == pytest.approx(-law.log(), abs=0.15)
    assert other == pytest.approx(-law.log(), abs=0.15)


def test_explicit_times_are_those_of_each_stream() -> None:
    network = JointTransformer(0, (), TINY, width=16, depth=1, heads=2, has_time=True)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    rows, half = TINY.join({"a": STATES[:, :2], "b": STATES[:, 2:]}), torch.full((len(STATES),), 0.5)
    with torch.no_grad():
        whole, each = network(rows, half).logits, network(rows, torch.stack([half, half], 1)).logits
        other = network(rows, torch.stack([half, 1 - half / 2], 1)).logits
    assert whole.equal(each)
    assert not torch.allclose(each, other, atol=1e-3)
