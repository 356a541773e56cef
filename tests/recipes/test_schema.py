"""Laws of recipes: what is accepted, what is refused and with which words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from maskgen.core.streams import Stream, TokenLayout
from maskgen.recipes import tree as module
from maskgen.recipes.load import load_recipe, parse_recipe
from maskgen.recipes.schema import RecipeError
from maskgen.strategies import STRATEGIES
from tests.tiny import FIELD, TOKENIZER, VECTORS, text_tree, tree


def write(path: Path, content: dict[str, Any] | str) -> str:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modle": 1}, ["modle: unknown key", "model", "objective"]),
        ({"train": {"stepz": 1}}, ["train.stepz: unknown key", "steps", "lr_schedule"]),
        ({"guidance": {"scael": 2}}, ["guidance.scael: unknown key", "interval, power, ramp, scale"]),
        ({"model": {"type": "maskgit", "widht": 3}}, ["model.widht: unknown key", "width"]),
        ({"sampler": {"type": "halton", "rolled": True}}, ["sampler.rolled: unknown key", "is_rolled"]),
        ({"train": {"lr": "fast"}}, ["train.lr", "number", "'fast'"]),
        ({"train": {"steps": 1.5}}, ["train.steps", "integer", "1.5"]),
        ({"train": 5}, ["train", "got 5"]),
        ({"data": 5}, ["data", "got 5"]),
        ({"train": {"keep_ratio": 0}}, ["train.keep_ratio", "greater than 0", "got 0"]),
        ({"train": {"precision": "int4"}}, ["train.precision", "'auto', 'no' or 'bf16'", "'int4'"]),
        ({"train": {"batch_size": 6, "accumulate": 4}}, ["train.batch_size", "multiple", "6", "4"]),
        ({"guidance": {"scale": -1}}, ["guidance", "at least 0", "-1"]),
        ({"sampler": {"type": "maskgit", "steps": 0}}, ["sampler", "steps must be at least 1", "0"]),
        ({"objective": {"type": "masked_tokens", "label_smoothing": 2}}, ["objective", "label_smoothing", "2"]),
        ({"model": {"type": "maskgit", "norm": "sideways"}}, ["model.norm", "'pre', 'post' or 'rms'", "'sideways'"]),
        ({"model": "maskgti"}, ["model: unknown model 'maskgti'", "choose from", "maskgit"]),
        ({"data": "mnits"}, ["data: unknown data set 'mnits'", "digits"]),
        ({"tokenizer": {"levels": 4}}, ["tokenizer", "needs `type:`", "pixels"]),
        ({"process": {"type": "absorbing", "schedule": "sine"}}, ["process.schedule", "'sine'", "cosine"]),
        ({"objective": "reconstruction"}, ["objective: maskgit is trained by masked_tokens, not by reconstruction"]),
        ({"model": None, "tokenizer": None}, ["nothing to train"]),
        ({"model": None, "tokenizer": {"from": "x"}}, ["nothing to train"]),
        ({"train": {"flip": True}}, ["train.flip", "tokens"]),
    ],
)
def test_a_fault_names_its_key_its_value_and_the_choices(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe(tree(**changes))
    for word in words:
        assert word in str(error.value)


TEXT: dict[str, Any] = {
    "data": {"type": "text_file", "path": "a-text.txt"},
    "tokenizer": "characters",
    "process": {"type": "absorbing", "schedule": "linear", "count": "bernoulli"},
    "model": {"type": "mdlm", "width": 8, "depth": 1, "heads": 2},
    "objective": {"type": "masked_tokens", "weight": "elbo"},
    "sampler": "ancestral",
}
KINDS: dict[str, dict[str, Any]] = {
    "mdlm": {},
    "discrete mdlm": {"objective": {"type": "masked_tokens", "weight": "elbo", "steps": 10}},
    "genmd4": {"process": "state_dependent", "model": {"type": "mdlm", "has_exponents": True}, "sampler": "genmd4"}
    | {"objective": "state_dependent"},
    "bd3": {"model": {"type": "bd3", "block_length": 4}, "objective": "block_tokens", "sampler": "first_hitting"},
    "ar": {"process": "absorbing", "model": "ar", "objective": "next_token", "sampler": "autoregressive"},
    "meap": {"process": "absorbing", "model": "ar", "objective": {"type": "next_token", "input_mask_ratio": 0.15}},
    "bytes": {"tokenizer": {"type": "bytes", "eos": True}, "train": {"document_attention": True}},
    "dropped": {"train": {"keep_ratio": 0.5, "optimizer": "muon"}},
}
"""Recipes of text that are whole, as changes of TEXT."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_of_text_says_so_and_comes_back_from_its_dump(kind: str) -> None:
    recipe = parse_recipe(tree(TEXT, **KINDS[kind]))
    assert recipe.kind == "text"
    assert recipe.task == "generator"
    assert parse_recipe(yaml.safe_load(recipe.dump())) == recipe
    assert recipe.build_objective(7).baseline == pytest.approx(math.log(7))
    assert isinstance(recipe.build_model(vocab_size=7), nn.Module)


def test_images_are_no_text() -> None:
    assert parse_recipe(tree()).kind == "image"


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("mdlm", {"tokenizer": None}, ["text needs a model and a tokenizer", "tokenizer: ", "characters"]),
        ("mdlm", {"model": None}, ["text needs a model and a tokenizer"]),
        ("mdlm", {"tokenizer": {"from": "x"}}, ["tokenizer:", "made from the data or read from a file", "`from`"]),
        ("mdlm", {"tokenizer": "pixels"}, ["tokenizer: pixels is not for text; choose from bpe, bytes, characters"]),
        (
            "mdlm",
            {"model": "maskgit"},
            ["model: maskgit is not for text; choose from ar, bd3, huggingface, joint, leave_one_out, mdlm"],
        ),
        ("mdlm", {"model": "classifier"}, ["model: classifier takes no tokenizer; change either"]),
        ("mdlm", {"model": "bd3"}, ["objective: bd3 is trained by block_tokens, not by masked_tokens"]),
        ("mdlm", {"model": "ar"}, ["objective: ar is trained by next_token, not by masked_tokens"]),
        ("bd3", {"model": "mdlm"}, ["mdlm is trained by masked_tokens or state_dependent, not by block_tokens"]),
        ("mdlm", {"guidance": {"scale": 2.0}}, ["guidance.scale", "no classes", "use 1, got 2.0"]),
        ("mdlm", {"train": {"flip": True}}, ["train.flip", "mirrors images", "leave it out"]),
        ("mdlm", {"process": "absorbing"}, ["objective: weight elbo needs a process with count bernoulli, got exact"]),
        ("bd3", {"process": "absorbing"}, ["objective: block_tokens needs process absorbing with count bernoulli"]),
        (
            "mdlm",
            {"process": "state_dependent"},
            ["objective: masked_tokens needs process absorbing", "state_dependent"],
        ),
        ("genmd4", {"process": "absorbing"}, ["objective: objective state_dependent needs process state_dependent"]),
        ("genmd4", {"model": "mdlm"}, ["model.has_exponents: true goes with objective state_dependent"]),
        ("mdlm", {"model": {"type": "mdlm", "has_exponents": True}}, ["model.has_exponents", "change either"]),
        ("ar", {"process": {"type": "absorbing", "count": "exact"}}, ["process: objective next_token", "leave it out"]),
        ("ar", {"objective": {"type": "next_token", "input_mask_ratio": 1.0}}, ["objective: input_mask_ratio", "1.0"]),
        ("bd3", {"objective": {"type": "block_tokens", "interval": [0.9, 0.1]}}, ["objective: interval", "low first"]),
        ("mdlm", {"objective": {"type": "masked_tokens", "steps": 5}}, ["objective: steps", "weight elbo", "got 5"]),
        ("genmd4", {"process": {"type": "state_dependent", "t_min": 0}}, ["process: t_min must be in (0, 1), got 0"]),
        ("bd3", {"train": {"keep_ratio": 0.5}}, ["train.keep_ratio: objective block_tokens", "use 1, got 0.5"]),
        ("ar", {"train": {"keep_ratio": 0.5}}, ["train.keep_ratio: objective next_token", "use 1, got 0.5"]),
        ("genmd4", {"train": {"keep_ratio": 0.5}}, ["train.keep_ratio: objective state_dependent", "use 1, got 0.5"]),
        ("bytes", {"train": {"document_attention": True, "keep_ratio": 0.5}}, ["train.keep_ratio", "use 1, got 0.5"]),
        (
            "bd3",
            {"train": {"document_attention": True}},
            ["train.document_attention", "model huggingface or mdlm", "leave it out"],
        ),
        ("genmd4", {"train": {"document_attention": True}}, ["train.document_attention", "objective masked_tokens"]),
        ("mdlm", {"train": {"optimizer": "sgd"}}, ["train.optimizer", "'adamw' or 'muon'", "'sgd'"]),
        ("mdlm", {"data": {"type": "text_file"}}, ["data.path: missing"]),
        ("mdlm", {"data": {"type": "text_file", "path": "x", "lenght": 3}}, ["data.lenght: unknown key", "length"]),
        ("bd3", {"model": {"type": "bd3", "has_time": True}}, ["model.has_time: unknown key", "block_length"]),
    ],
)
def test_parts_of_text_that_do_not_go_together_are_refused(
    kind: str, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe(tree(TEXT, **(KINDS[kind] | changes)))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer": "characters"}, ["tokenizer: characters is not for images; choose from autoencoder_dc"]),
        ({"train": {"document_attention": True}}, ["train.document_attention", "text", "leave it out"]),
    ],
)
def test_parts_of_text_are_refused_for_images(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe(tree(**changes))
    for word in words:
        assert word in str(error.value)


def test_a_tokenizer_that_learns_has_no_documents() -> None:
    with pytest.raises(RecipeError, match=r"train.document_attention: .* leave it out"):
        parse_recipe(tree(TOKENIZER, train={"document_attention": True}))


def test_each_of_several_unknown_keys_comes_with_the_keys_of_its_own_place() -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe(tree(modle=1, train={"stepz": 1}))
    by_key = dict(line.split(": ", 1) for line in str(error.value).splitlines())
    assert "objective" in by_key["modle"]
    assert "objective" not in by_key["train.stepz"]


def test_a_missing_key_is_named() -> None:
    with pytest.raises(RecipeError, match="data: missing\nobjective: missing"):
        parse_recipe({})


def test_a_key_that_is_no_word_is_refused() -> None:
    with pytest.raises(RecipeError, match="1"):
        parse_recipe({1: 2, **tree()})  # type: ignore[dict-item]


def test_a_tokenizer_has_no_tokens_to_drop() -> None:
    with pytest.raises(RecipeError, match=r"train.keep_ratio: 0.5 .* use 1"):
        parse_recipe(tree(TOKENIZER, train={"keep_ratio": 0.5}))


def test_a_tokenizer_is_not_trained_by_masking() -> None:
    with pytest.raises(RecipeError, match="masked_tokens does not train a tokenizer"):
        parse_recipe(tree(TOKENIZER, objective="masked_tokens"))


@pytest.mark.parametrize("changes", [{}, {"objective": {"type": "masked_tokens", "label_dropout": 0}}])
def test_labels_are_not_dropped_from_a_network_without_a_null_label(changes: dict[str, Any]) -> None:
    model = {"type": "maskgit", "norm": "post", "condition": "token", "has_null_label": False}
    with pytest.raises(RecipeError, match="has_null_label"):
        parse_recipe(tree(model=model, guidance={"scale": 2.0}, **changes))


ASKING = {"attention": "attention_scores", "hard": "difficulty"}


@pytest.mark.parametrize("strategy", STRATEGIES.names())
def test_a_recipe_names_its_mask_strategy(strategy: str) -> None:
    model = {"type": "maskgit", "has_difficulty": True}
    recipe = parse_recipe(tree(process={"type": "absorbing", "strategy": strategy}, model=model))
    built: Any = recipe.build_objective(TokenLayout.of(Stream("image", "image", 5, (8, 8))))
    assert built.strategy == built.process.strategy == STRATEGIES.build(strategy)
    assert built.process.layout.shape == (8, 8)
    assert parse_recipe(yaml.safe_load(recipe.dump())) == recipe


@pytest.mark.parametrize(
    ("process", "model", "message"),
    [
        ({"strategy": "blocks"}, {}, "process.strategy: .*unknown mask strategy 'blocks'; .*choose from .*block"),
        ({"strategy": {"type": "grid", "period": [1, 4]}}, {}, "period must be two whole numbers"),
        ({"strategy": {"type": "color", "color": "red"}}, {}, "color: input should be 'low', 'high', 'band' or 'stop'"),
        ({"strategy": "hard"}, {}, "process.strategy: hard requires .* set model.has_difficulty: true"),
    ],
)
def test_a_mask_strategy_without_sense_is_refused(process: dict[str, Any], model: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(tree(process={"type": "absorbing", **process}, model={"type": "maskgit", **model}))


@pytest.mark.parametrize("strategy", ASKING)
def test_a_strategy_that_asks_is_refused_where_the_network_does_not_answer(strategy: str, tmp_path: Path) -> None:
    changes = {"process": {"type": "absorbing", "strategy": strategy}, "objective": "masked_tokens"}
    with pytest.raises(RecipeError) as error:
        parse_recipe(text_tree(tmp_path / "poem.txt", **changes))
    assert str(error.value).endswith("model mdlm does not compute; choose from block, color, grid, random, units")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mdlm", "weight elbo needs tokens masked independently: strategy random"),
        ("bd3", "block_tokens needs tokens masked independently: strategy random"),
    ],
)
def test_a_bound_is_refused_under_masks_that_are_not_independent(kind: str, message: str, tmp_path: Path) -> None:
    process = {"type": "absorbing", "count": "bernoulli", "strategy": "block"}
    with pytest.raises(RecipeError, match=message):
        parse_recipe(text_tree(tmp_path / "poem.txt", kind, process=process))


def test_the_task_follows_from_the_parts() -> None:
    assert parse_recipe(tree()).task == "generator"
    assert parse_recipe(tree(TOKENIZER)).task == "tokenizer"
    assert parse_recipe({"data": "digits", "model": "classifier", "objective": "classification"}).task == "classifier"


def test_a_recipe_is_found_by_full_name_last_part_or_file(tmp_path: Path) -> None:
    wanted = load_recipe("image/digits-maskgit")
    assert load_recipe("digits-maskgit") == wanted
    assert load_recipe(write(tmp_path / "mine.yaml", wanted.dump())) == wanted


def test_an_unknown_name_is_answered_with_its_neighbours() -> None:
    with pytest.raises(RecipeError, match=r"'digit-maskgti'.*did you mean .*digits-maskgit.*maskgen recipes"):
        load_recipe("digit-maskgti")


def test_an_ambiguous_name_is_answered_with_all_it_may_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "recipe_names", lambda: ["image/same", "text/same"])
    with pytest.raises(RecipeError, match="'same' is ambiguous: image/same, text/same"):
        load_recipe("same")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"gone.yaml: No such file"):
        load_recipe(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data: [digits\nmodel: x", "bad.yaml is not YAML: .*line 2"),
        ("- data", "bad.yaml: a recipe is a mapping"),
        ("", "bad.yaml: a recipe is a mapping"),
        ("data: !!python/object/apply:os.getcwd []", "bad.yaml is not YAML: .*python/object"),
        ("summary: !!python/object:builtins.object {}", "bad.yaml is not YAML: .*python/object"),
    ],
)
def test_a_file_that_is_not_plain_yaml_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path / "bad.yaml", content))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"cannot read recipe .*bad.yaml"):
        load_recipe(tmp_path / "bad.yaml")


def test_a_base_is_changed_where_the_recipe_says_so(tmp_path: Path) -> None:
    base = write(tmp_path / "base.yaml", tree(train={"steps": 5, "lr": 0.5}))
    changes = {"base": base, "model": {"depth": 3}, "train": {"lr": 0.25}}
    recipe = load_recipe(write(tmp_path / "new.yaml", changes))
    assert recipe.model == tree()["model"] | {"depth": 3}
    assert (recipe.train.steps, recipe.train.lr) == (5, 0.25)


@pytest.mark.parametrize("tokenizer", [{"type": "fsq", "levels": [4]}, {"from": "somewhere"}])
def test_a_part_of_another_type_replaces_the_whole_part(tmp_path: Path, tokenizer: dict[str, Any]) -> None:
    base = write(tmp_path / "base.yaml", tree())
    recipe = load_recipe(write(tmp_path / "new.yaml", {"base": base, "tokenizer": tokenizer}))
    assert recipe.tokenizer == tokenizer


def test_bases_that_go_in_a_circle_are_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    write(first, {"base": str(second)})
    write(second, {"base": str(first)})
    with pytest.raises(RecipeError, match=r"base: .*a.yaml -> .*b.yaml -> .*a.yaml"):
        load_recipe(first)


def test_overrides_reach_nested_keys_and_read_yaml(tmp_path: Path) -> None:
    source = write(tmp_path / "r.yaml", tree(process="absorbing"))
    overrides = ["model.depth=2", "train.lr=1e-4", "train.betas=[0.5, 0.6]", "process.count=bernoulli", "seed=3"]
    recipe = load_recipe(source, [*overrides, "train.lr-schedule=constant"])
    assert recipe.model == tree()["model"] | {"depth": 2}
    assert (recipe.train.lr, recipe.train.betas, recipe.train.lr_schedule) == (1e-4, (0.5, 0.6), "constant")
    assert recipe.process == {"type": "absorbing", "count": "bernoulli"}
    assert recipe.seed == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "key=value, got 'train.steps'"),
        ("=3", "key=value"),
        ("train.steps=[", r"train.steps: the value '\[' is not YAML"),
        ("seed.x.y=1", "seed.x.y"),
        ("model.dpeth=2", "model.dpeth: unknown key"),
    ],
)
def test_an_override_that_makes_no_sense_is_refused(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("digits-maskgit", ["seed=1", override])


@pytest.mark.parametrize("content", [tree(), tree(TOKENIZER), tree(data={"type": "fashion_mnist", "n_test": None})])
def test_a_dumped_recipe_loads_as_itself(content: dict[str, Any]) -> None:
    recipe = parse_recipe(content)
    assert parse_recipe(yaml.safe_load(recipe.dump())) == recipe


def test_a_sampler_of_another_type_starts_from_its_own_defaults() -> None:
    recipe = parse_recipe(tree(sampler={"type": "maskgit", "steps": 3}))
    assert recipe.build_sampler().steps == 3
    assert recipe.build_sampler(temperature=0.5).steps == 3
    assert recipe.build_sampler(type="halton").steps == 32


def test_a_base_file_is_looked_for_beside_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("base: digits-maskgit\nseed: 5\n")
    (tmp_path / "mine.yaml").write_text("base: base.yaml\nsummary: mine\n")
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert (recipe.seed, recipe.summary) == (5, "mine")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampler": "maskgit"}, ["sampler", "continuous", "order random"]),
        ({"sampler": {"type": "emigm", "top_p": 0.9}}, ["sampler", "top_p 1"]),
        ({"sampler": {"type": "emigm", "temperature": 0.9}}, ["sampler.temperature", "use ddpm"]),
        ({"sampler": {"type": "emigm", "head": "dmp"}}, ["sampler.head", "'dmp'", "ddpm"]),
        ({"objective": "masked_tokens"}, ["masked_tokens", "discrete tokens"]),
        ({"objective": "denoising"}, ["mar is trained by token_diffusion or masked_tokens", "denoising"]),
        ({"model": {"type": "mar", "head": "categorical"}}, ["model.head", "continuous", "diffusion"]),
        ({"model": {"type": "mar", "head": {"type": "diffusion", "process": "absorbing"}}}, ["process", "gaussian"]),
        ({"model": {"type": "mar", "null_token": "zero"}}, ["model.null_token", "'own' or 'mask'"]),
        ({"process": {"type": "absorbing", "at_least": -1}}, ["at_least", "-1"]),
        ({"objective": {"type": "token_diffusion", "weight": "elbo"}}, ["objective", "count bernoulli"]),
        (
            {"objective": {"type": "token_diffusion", "ratio_per": "pixel"}},
            ["objective.ratio_per", "'sample' or 'batch'"],
        ),
        ({"guidance": {"scale": 2}, "objective": {"type": "token_diffusion", "label_dropout": 0}}, ["label_dropout"]),
        ({"train": {"keep_ratio": 0.5}}, ["train.keep_ratio", "token_diffusion"]),
    ],
)
def test_a_recipe_of_masked_vectors_that_pairs_parts_wrongly_says_so(changes: dict[str, Any], words: list[str]) -> None:
    parse_recipe(VECTORS)
    with pytest.raises(RecipeError) as error:
        parse_recipe(VECTORS | changes)
    assert len(str(error.value).splitlines()) <= 2
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampler": {"type": "emigm", "head": "ddpm"}}, ["sampler.head", "numbers"]),
        ({"model": {"type": "mar", "width": 8, "depth": 1, "heads": 2}}, ["model.head", "discrete", "categorical"]),
        ({"guidance": {"ramp": "revealed", "scale": 2}}, ["guidance.ramp", "order halton"]),
        ({"objective": "token_diffusion"}, ["maskgit is trained by masked_tokens"]),
    ],
)
def test_a_recipe_of_numbers_takes_nothing_that_is_for_vectors(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe(tree(**changes))
    for word in words:
        assert word in str(error.value)


def test_tokens_are_not_dropped_from_a_network_that_takes_the_rest_for_visible() -> None:
    numbers = {"model": {"type": "mar", "head": "categorical"}}
    parse_recipe(tree(**numbers))
    with pytest.raises(RecipeError, match=r"train\.keep_ratio: mar computes visible tokens as it is; use 1, got 0.5"):
        parse_recipe(tree(**numbers, train={"keep_ratio": 0.5}))


def test_a_field_has_no_share_that_is_revealed() -> None:
    with pytest.raises(RecipeError, match=r"guidance\.ramp: revealed"):
        parse_recipe(FIELD | {"guidance": {"ramp": "revealed", "scale": 2}})


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("mae", ["objective.decode_ratio=0.3"], ["objective.decode_ratio: 0.3", "take model.decoder cross, or 1"]),
        ("mae", ["train.preview_every=100"], ["train.preview_every", "use 0, or objective.target pixels"]),
        ("mae", ["model.encoder_sees=all", "model.decoder=cross"], ["model.decoder", "goes with decoder linear or"]),
        ("mae", ["model.decoder=linear"], ["model.decoder", "encoder_sees all"]),
        ("mae", ["model.width=18"], ["model: 2-D sine-cosine positions need a width", "multiple of 4, got 18"]),
        ("mae", ["model.heads=5"], ["model: width must be a multiple of heads, got width 96 and heads 5"]),
        ("mae", ["model.depth=0"], ["model: width, depth, heads and mlp_ratio must be positive"]),
        ("mae", ["model.decoder.width=6"], ["model.decoder: ", "multiple of 4, got 6"]),
        ("mae", ["model.decoder.heads=3"], ["model.decoder: width must be a multiple of heads"]),
        ("diffmae", ["model.decoder.depth=0"], ["model.decoder: width, depth, heads and mlp_ratio must be positive"]),
        ("mar", ["model.n_buffer=0"], ["model: n_buffer must be at least 1"]),
        ("mar", ["model.head.depth=0"], ["model.head: width and depth must be positive, got ", " and 0"]),
        ("mar", ["model.head.process.steps=1"], ["model.head: ", "process.steps of at least 2"]),
        ("mage", ["model.decoder_depth=0"], ["model: width, depth, heads and mlp_ratio must be positive"]),
        ("mage", ["model.decoder_heads=-1"], ["model: decoder_heads, table_rows and projection must not be negative"]),
        ("mae", ["sampler.temperature=0.5"], ["sampler.temperature must be 1: this network predicts one value"]),
        ("mae", ["sampler=maskgit"], ["sampler: this sampler uses token probabilities"]),
        ("mae", ["model=diffmae"], ["process: model diffmae needs gaussian, not absorbing"]),
        ("mae", ["train.keep_ratio=0.5"], ["train.keep_ratio: objective masked_regression drops no tokens"]),
        ("mae", ["guidance.scale=2"], ["guidance.scale: model mae has no classes", "use 1"]),
        (
            "mae",
            ["process.strategy=hard"],
            ["process.strategy: hard requires", "model.has_difficulty: true"],
        ),
        ("diffmae", ["process.target=v"], ["objective: masked_denoising needs process gaussian with target x_0"]),
        ("diffmae", ["model.decoder.depth=5"], ["model.decoder: reads reversed", "depth 5 is more than its 4"]),
        (
            "diffmae",
            ["objective.strategy=hard"],
            ["objective.strategy: hard requires difficulty of the network, which model diffmae"],
        ),
        ("diffmae", ["objective.mask_ratio=0"], ["objective: ratio must be in (0, 1]"]),
        ("diffmae", ["objective=denoising"], ["objective: diffmae is trained by masked_denoising, not by denoising"]),
    ],
)
def test_masked_autoencoders_of_parts_that_do_not_fit_are_refused_in_a_line(
    name: str, overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(f"image/fashion-{name}", overrides)
    assert len(str(error.value).splitlines()) == 1
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("mae", ["model.decoder={type: cross, width: 64, depth: 2, heads: 2}", "objective.decode_ratio=0.3334"]),
        ("mae", ["objective.target=pixels", "train.preview_every=100"]),
        ("mae", ["model.encoder_sees=all"]),
        ("mae", ["process.strategy=attention"]),
        ("mae", ["process.strategy=hard", "model.has_difficulty=true"]),
        ("mae", ["process.schedule=cosine"]),
        ("diffmae", ["objective.strategy=block"]),
        ("diffmae", ["model.decoder={type: joint, width: 64, depth: 1, heads: 2}"]),
    ],
)
def test_what_masked_autoencoders_can_be_combined_with(name: str, overrides: list[str]) -> None:
    load_recipe(f"image/fashion-{name}", overrides)
