"""What the layouts of masked language models of Llama's kind share."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from maskgen.checkpoints.convert.converter import Converter, Target, shipped
from maskgen.checkpoints.convert.published import Published
from maskgen.core.errors import UserError
from maskgen.recipes.build import DataFacts, text_layout
from maskgen.tokenizers.text.pretrained import published_tokenizer
from maskgen.tokenizers.text.tokenizer import TextTokenizer


class LanguageModelWeights(Converter):
    """Base of converters: RMSNorm, SwiGLU, rotary positions in halves, [MASK] within the vocabulary.

    Attributes:
        embedding: name of the table of token embeddings.
        head: name of the table of logits.
        names: other tensors, a pattern of their name -> our name.
        joined: first of several tensors that ours holds in one, a pattern -> their parts and our name.
        shipped_recipe: at the published size.
        keys: of config.json: `length` (tokens in a row), `is_tied`, `depth`, `heads` and `n_kv_heads`.
        gate: the first block's gate of SwiGLU, whose rows are its width.
        eps: of the norms where config.json has none.
        mask: id of [MASK] where config.json has none.
        elsewhere: pattern of names that the layout converts itself; empty for none.
        tokenizer_kind: class of `transformers` for a tokenizer in an older format.
    """

    embedding: ClassVar[str]
    head: ClassVar[str]
    names: ClassVar[Mapping[str, str]]
    joined: ClassVar[Mapping[str, tuple[tuple[str, ...], str]]]
    shipped_recipe: ClassVar[str]
    keys: ClassVar[Mapping[str, str]]
    gate: ClassVar[str]
    mask: ClassVar[int]
    eps: ClassVar[float]
    elsewhere: ClassVar[str] = ""
    tokenizer_kind: ClassVar[str] = "AutoTokenizer"

    @abstractmethod
    def settings(self, found: Published) -> dict[str, object]:
        """Keys of the recipe's `model` beside the sizes.

        Raises:
            UserError: a setting that the published networks do not have.
        """

    def _is_tied(self, found: Published) -> bool:
        """Whether logits use the embedding."""
        return found.config.get(self.keys["is_tied"]) is True

    def _sizes(self, found: Published) -> dict[str, object]:
        heads = config_number(found, self.keys["heads"])
        return {
            "depth": config_number(found, self.keys["depth"]),
            "heads": heads,
            "n_kv_heads": config_number(found, self.keys["n_kv_heads"], heads),
            "mlp_width": len(found.state[self.gate]),
            "norm_eps": config_number(found, "rms_norm_eps", self.eps),
            "rotary_base": config_number(found, "rope_theta", 10_000.0),
        }

    def target(self, found: Published) -> Target:
        if not found.config:
            raise UserError(f"{type(self).__name__} needs config.json beside the weights: convert the whole folder")
        vocab_size, width = found.state[self.embedding].shape
        model = {
            "type": "mdlm", "width": width, "mlp": "swiglu", "norm": "rms", "rotary": "half", "head_bias": False,
            "mask_row": self._mask(found), "is_tied": self._is_tied(found), **self._sizes(found),
            **self.settings(found),
        }  # fmt: skip
        length = int(config_number(found, self.keys["length"], 4096))
        recipe = shipped(self.shipped_recipe, model=model)
        return Target(recipe, DataFacts(length=length), text_layout(vocab_size, length))

    def tensors(self, found: Published) -> dict[str, Tensor]:
        names = {re.escape(self.embedding): "embedding.weight", re.escape(self.head): "head.weight", **self.names}
        parts = [part for several, _ in self.joined.values() for part in several[1:]]
        ours: dict[str, Tensor] = {}
        for key in found.state:
            is_part = any(f".{part}." in key for part in parts)
            is_part = is_part or bool(self.elsewhere and re.search(self.elsewhere, key))
            if is_part or key.endswith("rotary_emb.inv_freq") or (key == self.head and self._is_tied(found)):
                continue
            name, value = self._converted(found.state, names, key)
            ours[name] = value
        return ours

    def text_tokenizer(self, found: Published) -> TextTokenizer | None:
        if found.folder is None:
            return None
        return published_tokenizer(
            found.folder, len(found.state[self.embedding]), self._mask(found), self.tokenizer_kind
        )

    def _mask(self, found: Published) -> int:
        return int(config_number(found, "mask_token_id", self.mask))

    def _converted(self, state: Mapping[str, Tensor], names: Mapping[str, str], key: str) -> tuple[str, Tensor]:
        """Our name of a tensor, and the tensor, joined with those that ours holds in one.

        Raises:
            UserError: no tensor of the layout, or one of those joined is missing.
        """
        for pattern, name in names.items():
            if re.fullmatch(pattern, key):
                return re.sub(pattern, name, key), state[key]
        for pattern, (parts, name) in self.joined.items():
            if re.fullmatch(pattern, key):
                several = [key.replace(parts[0], part) for part in parts]
                if missing := [one for one in several if one not in state]:
                    raise UserError(f"{missing[0]} is missing; is the file of another network?")
                return re.sub(pattern, name, key), torch.cat([state[one] for one in several])
        raise UserError(f"{key} is no tensor of this language model; is the file of another network?")


def config_number(found: Published, key: str, default: float | None = None) -> float:
    """A number of config.json; whole ones are `int`.

    Raises:
        UserError: it is missing without a default, or no number.
    """
    value = found.config.get(key)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UserError(f"config.json: {key} must be a number, got {value!r}")
    return value


def require_usual(found: Published, usual: Mapping[str, object], kind: str) -> None:
    """Check settings that change the network without a trace in names and shapes.

    Raises:
        UserError: one that the published networks do not have.
    """
    for key, value in usual.items():
        if (given := found.config.get(key)) not in (None, value):
            raise UserError(f"config.json: {key} {given!r} is not that of {kind} ({value!r}); it is not supported")
