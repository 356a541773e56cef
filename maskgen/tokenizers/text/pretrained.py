"""Text tokenizers of Hugging Face: a file, a folder or a hub id."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer

from maskgen.core.errors import first_line
from maskgen.core.files import local_path
from maskgen.core.hub import download, hub_or_folder, model_files, without_advice
from maskgen.tokenizers.base import TOKENIZERS
from maskgen.tokenizers.text.specials import CONFIG, Specials, read_specials
from maskgen.tokenizers.text.tokenizer import EOS, TextTokenizer, TokenizerError, read_tokenizer

USUAL_EOS = (EOS, "</s>", "[SEP]")
FILES = ("tokenizer.json", CONFIG, "special_tokens_map.json", "*config.json", "chat_template.*")
OLDER = ("vocab.json", "merges.txt", "tokenizer.model", "vocab.txt", "added_tokens.json")


@TOKENIZERS.register("huggingface")
def huggingface(source: str, eos: str | None = None, specials: bool = False, vocab_size: int = 0) -> TextTokenizer:
    """A tokenizer in Hugging Face's format: a `tokenizer.json`, a folder with one, or a hub id.

    Args:
        source: file, folder, `owner/name`, a GGUF file, or `package:NAME`, an installed package with one in it.
        eos: the token that ends a document; null takes the first of <|endoftext|>, </s> and [SEP] that exists.
        specials: read the roles of special tokens and the chat template, which decide how prompts begin, which tokens
            end a text and which are never generated.
        vocab_size: number of ids, where the network has more than the tokenizer; 0 for those of the tokenizer.

    Raises:
        TokenizerError: no tokenizer there, or it has no such token.
    """
    if source.endswith(".gguf") or source.startswith("package:"):
        return _of_gguf(source, eos, vocab_size, has_roles=specials)
    file = local_path(source)
    if not file.is_file():
        file = tokenizer_folder(source, FILES if specials else FILES[:1]) / "tokenizer.json"
    tokenizer = read_tokenizer(file)
    eos = _usual_eos(tokenizer) if eos is None else eos
    roles = read_specials(file.parent, tokenizer, vocab_size) if specials else Specials(vocab_size=vocab_size)
    return TextTokenizer(tokenizer, eos, roles)


def _of_gguf(source: str, eos: str | None, vocab_size: int, *, has_roles: bool) -> TextTokenizer:
    """The tokenizer of a GGUF file, as transformers reads it."""
    folder, name = model_files(source)
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise TokenizerError("GGUF files need transformers: pip install 'maskgen[huggingface]'") from None
    try:
        found = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        tokenizer: Tokenizer = found.backend_tokenizer
    except (OSError, ValueError, ImportError, AttributeError) as error:
        raise TokenizerError(f"no tokenizer in {source}: {first_line(error)}") from None
    if not has_roles:
        return TextTokenizer(tokenizer, eos, Specials(vocab_size=vocab_size))
    with TemporaryDirectory() as files:
        found.save_pretrained(files)
        return TextTokenizer(tokenizer, eos, read_specials(Path(files), tokenizer, vocab_size))


def tokenizer_folder(source: str, files: Sequence[str] = (*FILES, *OLDER)) -> Path:
    """The folder of a tokenizer: that of a file, a folder, or a download of `files` of a hub id.

    Raises:
        TokenizerError: none of these.
    """
    if (path := local_path(source)).is_file():
        return path.parent
    try:
        place = hub_or_folder(source)
        return Path(place) if Path(place).is_dir() else download(place, list(files))
    except FileNotFoundError as error:
        raise TokenizerError(f"no tokenizer {source!r}: {first_line(error)}") from None


def published_tokenizer(
    folder: Path,
    vocab_size: int,
    mask: int | None = None,
    kind: str = "AutoTokenizer",
    has_roles: bool = True,
    starts_with_eos: bool = False,
) -> TextTokenizer | None:
    """The tokenizer in a folder of a published text model; None if there is none.

    Args:
        folder: with tokenizer.json, or the files of an older format, which `transformers` reads.
        vocab_size: ids of the network.
        mask: id of [MASK] within the vocabulary; None if it is not there or the files tell it.
        kind: class of `transformers` that reads the older format.
        has_roles: special tokens begin and end texts; False for networks trained on packed documents.
        starts_with_eos: texts begin with the token that ends a document.

    Raises:
        TokenizerError: the files cannot be read.
    """
    if (folder / "tokenizer.json").is_file():
        tokenizer = read_tokenizer(folder / "tokenizer.json")
    elif any((folder / name).is_file() for name in OLDER):
        tokenizer = _converted(folder, kind)
    else:
        return None
    roles = read_specials(folder, tokenizer, vocab_size, mask)
    eos = tokenizer.id_to_token(roles.stop[0]) if roles.stop else None
    eos = _usual_eos(tokenizer) if eos is None else eos
    if not has_roles:
        first = tokenizer.token_to_id(eos) if starts_with_eos and eos is not None else None
        prefix = () if first is None else (first,)
        roles = Specials(vocab_size, roles.mask, prefix, forbidden=roles.forbidden)
    return TextTokenizer(tokenizer, eos, roles)


def _usual_eos(tokenizer: Tokenizer) -> str | None:
    """The first token of `USUAL_EOS` that a tokenizer has."""
    return next((name for name in USUAL_EOS if tokenizer.token_to_id(name) is not None), None)


def _converted(folder: Path, kind: str) -> Tokenizer:
    """The fast tokenizer that `transformers` makes of older files.

    Raises:
        TokenizerError: no `transformers`, or files that need code of their own.
    """
    try:
        transformers = importlib.import_module("transformers")
        loaded = getattr(transformers, kind).from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer: Tokenizer = loaded.backend_tokenizer
    except ImportError:
        raise TokenizerError(
            f"{folder} has no tokenizer.json; its older files need transformers: pip install 'maskgen[chat]'"
        ) from None
    except Exception as error:  # the library raises anything
        raise TokenizerError(f"{folder} has no tokenizer that can be read: {without_advice(error)}") from None
    return tokenizer
