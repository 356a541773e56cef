"""Special tokens of a pretrained text tokenizer by their role, and the layout of a conversation."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models

from maskgen.core.errors import UserError, first_line
from maskgen.core.files import read_json, write_json

CONFIG = "tokenizer_config.json"
"""Beside tokenizer.json: roles of special tokens, as transformers reads them, and under `maskgen` as we do."""

Message = Mapping[str, str]
"""A turn of a conversation: `role` (system, user, assistant) and `content`."""


@dataclass(frozen=True)
class Specials:
    """Roles of the special tokens of a text tokenizer.

    [MASK] is always id `vocab_size` in rows of tokens. A published network whose [MASK] is an id within its vocabulary
    maps that row by its key `mask_row`; `mask` is the id, which no text has.

    Attributes:
        vocab_size: number of ids, where the network has more than the tokenizer has tokens; 0 for those of it.
        mask: id of [MASK] within the vocabulary; None if it is not there.
        prefix: tokens that every text begins with.
        stop: tokens that end a generated text.
        forbidden: ids that are never generated: [MASK], tokens of padding, of the beginning, of the unknown, and ids
            that no token has.
        chat_template: Jinja template of a conversation; empty without.
    """

    vocab_size: int = 0
    mask: int | None = None
    prefix: tuple[int, ...] = ()
    stop: tuple[int, ...] = ()
    forbidden: tuple[int, ...] = ()
    chat_template: str = ""

    def save(self, file: Path, tokenizer: Tokenizer) -> None:
        """Write them as `tokenizer_config.json`; nothing if no token has a role."""
        if self == Specials():
            return
        config: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", "maskgen": asdict(self)}
        for key, token in (("mask_token", self.mask), ("eos_token", self.stop[0] if self.stop else None)):
            if token is not None:
                config[key] = tokenizer.id_to_token(token)
        if self.chat_template:
            config["chat_template"] = self.chat_template
        write_json(file, config)

    @classmethod
    def load(cls, file: Path) -> Specials:
        """Those that `save` wrote; none if there is no such file, or it is another program's.

        Raises:
            UserError: a damaged file.
        """
        if not file.is_file():
            return cls()
        try:
            config = read_json(file)
            if "maskgen" not in config:  # another program's
                return cls()
            stored = config["maskgen"]
            prefix, stop, forbidden = (tuple(map(int, stored[key])) for key in ("prefix", "stop", "forbidden"))
            mask = None if stored["mask"] is None else int(stored["mask"])
            return cls(int(stored["vocab_size"]), mask, prefix, stop, forbidden, str(stored["chat_template"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged: {first_line(error)}") from None


def read_specials(folder: Path, tokenizer: Tokenizer, vocab_size: int = 0, mask: int | None = None) -> Specials:
    """The roles that a folder of transformers gives to the tokens of its tokenizer.

    They come from tokenizer_config.json, special_tokens_map.json, config.json, generation_config.json and
    chat_template.jinja, each of which may be missing.

    Args:
        folder: of a published model.
        tokenizer: its tokenizer.
        vocab_size: rows of the network's tables; 0 for the tokens of the tokenizer.
        mask: id of [MASK] if known; None takes that of the files.

    Raises:
        UserError: a damaged file, or a chat template that cannot be used.
    """
    named = _read(folder / CONFIG) | _read(folder / "special_tokens_map.json")
    model, generation = _read(folder / "config.json"), _read(folder / "generation_config.json")
    role = {key: _id(tokenizer, named.get(f"{key}_token")) for key in ("bos", "eos", "pad", "unk", "cls", "mask")}
    if mask is None:
        number = model.get("mask_token_id")
        mask = int(number) if isinstance(number, int) else role["mask"]
    template = _template(folder, named)
    stop = [role["eos"], *_ids(model.get("eos_token_id")), *_ids(generation.get("eos_token_id"))]
    if template:
        stop.append(end_of_turn(tokenizer, template))
    ends = tuple(dict.fromkeys(token for token in stop if token is not None))
    names = tokenizer.get_vocab(with_added_tokens=True)
    size = max(vocab_size, max(names.values(), default=-1) + 1)
    never = {mask, *(role[key] for key in ("bos", "pad", "unk", "cls"))} | (set(range(size)) - set(names.values()))
    forbidden = sorted(token for token in never if token is not None and token not in ends)
    return Specials(vocab_size, mask, _prefix(tokenizer), ends, tuple(forbidden), template)


def rendered(template: str, messages: Sequence[Message], is_open: bool = True) -> str:
    """A conversation as text with the names of special tokens.

    Args:
        template: Jinja, run in a sandbox by transformers.
        messages: turns.
        is_open: the text ends where the answer begins.

    Raises:
        UserError: no `transformers`, or a template that refuses these messages.
    """
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        raise UserError("a chat template needs transformers: pip install 'maskgen[chat]'") from None
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"": 0}, unk_token="")))
    try:
        turns = [dict(message) for message in messages]
        return str(
            bare.apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=is_open)
        )
    except Exception as error:  # a template can raise anything
        raise UserError(f"the chat template refuses the messages: {first_line(error)}") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        return read_json(file) if file.is_file() else {}
    except ValueError as error:
        raise UserError(f"{file} is damaged: {first_line(error)}") from None


def _id(tokenizer: Tokenizer, token: object) -> int | None:
    """The id of a token that is given by its name, or as a mapping with `content`."""
    name = token.get("content") if isinstance(token, Mapping) else token
    return tokenizer.token_to_id(name) if isinstance(name, str) else None


def _ids(value: object) -> list[int]:
    return [int(one) for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)]


def _prefix(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The special tokens that the post-processor puts before a text."""
    encoding = tokenizer.encode("a")
    flags = encoding.special_tokens_mask
    n = next((index for index, flag in enumerate(flags) if not flag), 0)
    return tuple(encoding.ids[:n])


def _template(folder: Path, named: Mapping[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = named.get("chat_template") or _read(folder / "chat_template.json").get("chat_template") or ""
    if isinstance(template, list):  # several by name
        template = next((one["template"] for one in template if one.get("name") == "default"), "")
    # The template may use the names of the special tokens as variables.
    names = {key: named[key] for key in ("bos_token", "eos_token") if key in named}
    values = {key: one["content"] if isinstance(one, Mapping) else one for key, one in names.items()}
    head = "".join(f"{{%- set {key} = {value!r} %}}" for key, value in values.items() if isinstance(value, str))
    return head + str(template) if template else ""


def end_of_turn(tokenizer: Tokenizer, template: str) -> int | None:
    """The special token that follows an answer in a conversation; None without."""
    answer = "\ufffcanswer\ufffc"
    turns: list[Message] = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
    rest = rendered(template, turns, is_open=False).partition(answer)[2].lstrip()
    specials = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    found = [name for name in specials if rest.startswith(name)]
    return tokenizer.token_to_id(max(found, key=len)) if found else None
