"""Checkpoints for other libraries: what diffusers and transformers load by themselves."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from maskgen.checkpoints.checkpoint import Checkpoint, load_system
from maskgen.checkpoints.export import EXPORTERS
from maskgen.checkpoints.llama_format import llama_config, llama_tensors, mask_row, require_llama
from maskgen.checkpoints.locate import MODEL, TOKENIZER
from maskgen.checkpoints.usage import Attention, EntryClass, Usage
from maskgen.core.errors import UserError
from maskgen.core.traits import traits_of
from maskgen.models.dit import DiT
from maskgen.models.huggingface import HuggingFaceDenoiser
from maskgen.models.mdlm import MDLM
from maskgen.models.pretrained import configuration_of
from maskgen.models.text import TextTransformer
from maskgen.tokenizers import ImageTokenizer
from maskgen.tokenizers.text.tokenizer import TextTokenizer

FOLDERS = {"VQModel": "vqvae", "AutoencoderKL": "vae", "AutoencoderDC": "vae", "UVit2DModel": "transformer"}
"""Class of diffusers -> folder of it in a pipeline."""

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
"""`model_type` of transformers -> the class that loads it."""


@EXPORTERS.register("diffusers")
def as_diffusers(checkpoint: Checkpoint, path: Path, dtype: torch.dtype, facts: dict[str, object]) -> None:  # noqa: ARG001
    """Networks and autoencoders that are models of diffusers, each in a folder that `from_pretrained` loads."""
    from diffusers import ModelMixin

    system = load_system(checkpoint)
    owners = [system.network, *([system.tokenizer] if isinstance(system.tokenizer, ImageTokenizer) else [])]
    parts = [part for owner in owners for part in owner.modules() if isinstance(part, ModelMixin)]
    if not parts:
        raise UserError(f"--format diffusers: {checkpoint.path}: {_reason(system.network)}; use --format maskgen")
    for part in parts:
        nn.Module.to(part, dtype)  # in place; its own warns of parts that are kept in float32, of which there are none
        part.save_pretrained(path / FOLDERS.get(type(part).__name__, type(part).__name__.lower()))


def _reason(network: nn.Module) -> str:
    if isinstance(network, DiT):
        return (
            "DiTTransformer2DModel of diffusers embeds times at other frequencies (10,000^(-i/127), DiT's are "
            "10,000^(-i/128)), so no weights give it the same outputs"
        )
    return f"diffusers has no counterpart of {type(network).__name__}"


@EXPORTERS.register("huggingface")
def as_huggingface(checkpoint: Checkpoint, path: Path, dtype: torch.dtype, facts: dict[str, object]) -> None:
    """A language model that transformers loads, without code of its own: config.json, weights, tokenizer, README.md.

    Networks of transformers, and ours that are those of Llama or Qwen2 (LLaDA, Dream, `mdlm`, `bd3` and `ar` with their
    settings). `mask_token_id` of the configuration is [MASK]; README.md and the key `maskgen` say how it is called.
    """
    system = load_system(checkpoint)
    network, tokenizer = system.network, system.tokenizer
    if not isinstance(tokenizer, TextTokenizer) or not isinstance(network, HuggingFaceDenoiser | TextTransformer):
        raise UserError(
            f"--format huggingface: transformers has no counterpart of {type(network).__name__}; use --format maskgen, "
            "or weights for the tensors alone"
        )
    if isinstance(network, HuggingFaceDenoiser):
        usage = _adapted(network, path, dtype)
    else:
        usage = _llama(network, tokenizer, system.facts.length, path, dtype)
    (path / "README.md").write_text(usage.readme(path.name, str(facts["summary"])), encoding="utf-8")
    _save_tokenizer(tokenizer, path)


def _adapted(network: HuggingFaceDenoiser, path: Path, dtype: torch.dtype) -> Usage:
    """Write a network of transformers."""
    is_causal = network.kind == "causal"
    entry: EntryClass = "AutoModelForCausalLM" if is_causal else "AutoModelForMaskedLM"
    attention: Attention = "full" if is_causal else "library"
    usage = Usage(entry, attention, network.mask_row, network.shift, network.first, network.last)
    config = network.network.config
    config.mask_token_id, config.maskgen = usage.mask, usage.tree()
    with contextlib.redirect_stdout(io.StringIO()):
        nn.Module.to(network.network, dtype)  # in place
        network.network.save_pretrained(path)
    return usage


def _llama(network: TextTransformer, tokenizer: TextTokenizer, length: int, path: Path, dtype: torch.dtype) -> Usage:
    """Write a network of ours that is one of Llama or Qwen2.

    Raises:
        UserError: it differs from them, or transformers is not installed.
    """
    require_llama(network)
    keys = llama_config(network, length)
    mask, block_length = mask_row(network), traits_of(network).block_length or 0
    attention: Attention = "full" if not block_length else "blocks"
    usage = Usage("AutoModelForCausalLM", attention, mask, block_length=block_length)
    if isinstance(network, MDLM):
        usage = replace(usage, shift=network.is_shifted)
    elif traits_of(network).is_autoregressive:
        usage = Usage("AutoModelForCausalLM", "causal", mask, shift=True, first=mask)
    config = configuration_of({**keys, "mask_token_id": mask, "maskgen": usage.tree(), "dtype": str(dtype)[6:]})
    config.architectures = [ARCHITECTURES[str(keys["model_type"])]]
    config.bos_token_id, config.eos_token_id, config.pad_token_id = usage.first, tokenizer.eos, None
    path.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(path)
    tensors = {name: value.to(dtype).contiguous() for name, value in llama_tensors(network).items()}
    save_file(tensors, path / MODEL, {"format": "pt"})
    return usage


def _save_tokenizer(tokenizer: TextTokenizer, path: Path) -> None:
    """Write a tokenizer as transformers reads it."""
    from transformers import PreTrainedTokenizerFast

    tokenizer.save(path / TOKENIZER)
    names, specials = tokenizer.token_names(), tokenizer.specials
    ids = {"eos_token": tokenizer.eos, "mask_token": specials.mask}
    roles = {role: names[token] for role, token in ids.items() if token is not None and token < len(names)}
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(path / TOKENIZER), **roles)
    if specials.chat_template:
        theirs.chat_template = specials.chat_template
    theirs.save_pretrained(path)
