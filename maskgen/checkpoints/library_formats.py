"""Checkpoints for other libraries: what diffusers and transformers load by themselves."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import torch
from torch import nn

from maskgen.checkpoints.checkpoint import Checkpoint, load_system
from maskgen.checkpoints.export import EXPORTERS
from maskgen.checkpoints.locate import TOKENIZER
from maskgen.core.errors import UserError
from maskgen.models.dit import DiT
from maskgen.models.huggingface import HuggingFaceDenoiser
from maskgen.tokenizers import ImageTokenizer
from maskgen.tokenizers.text.tokenizer import TextTokenizer

FOLDERS = {"VQModel": "vqvae", "AutoencoderKL": "vae", "AutoencoderDC": "vae", "UVit2DModel": "transformer"}
"""Class of diffusers -> folder of it in a pipeline."""


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
        part.to(dtype).save_pretrained(path / FOLDERS.get(type(part).__name__, type(part).__name__.lower()))


def _reason(network: nn.Module) -> str:
    if isinstance(network, DiT):
        return (
            "DiTTransformer2DModel of diffusers embeds times at other frequencies (10,000^(-i/127), DiT's are "
            "10,000^(-i/128)), so no weights give it the same outputs"
        )
    return f"diffusers has no counterpart of {type(network).__name__}"


@EXPORTERS.register("huggingface")
def as_huggingface(checkpoint: Checkpoint, path: Path, dtype: torch.dtype, facts: dict[str, object]) -> None:  # noqa: ARG001
    """A language model that transformers loads: config.json, weights, tokenizer.

    `mask_token_id` of the configuration is [MASK]; `maskgen` has the shift of its outputs and the tokens around a row.
    """
    system = load_system(checkpoint)
    network = system.network
    if not isinstance(network, HuggingFaceDenoiser) or not isinstance(system.tokenizer, TextTokenizer):
        raise UserError(
            f"--format huggingface: transformers has no counterpart of {type(network).__name__}; use --format maskgen, "
            "or weights for the tensors alone"
        )
    from transformers import PreTrainedTokenizerFast

    config = network.network.config
    config.mask_token_id = network.mask_row
    config.maskgen = {"kind": network.kind, "shift": network.shift, "first": network.first, "last": network.last}
    with contextlib.redirect_stdout(io.StringIO()):
        nn.Module.to(network.network, dtype)  # in place
        network.network.save_pretrained(path)
    system.tokenizer.save(path / TOKENIZER)
    eos = system.tokenizer.eos
    names = system.tokenizer.token_names()
    PreTrainedTokenizerFast(
        tokenizer_file=str(path / TOKENIZER), eos_token=None if eos is None else names[eos]
    ).save_pretrained(path)
