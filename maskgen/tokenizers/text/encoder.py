"""Text encoders of `transformers`: captions as vectors. Code that comes with a model is never run."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.files import local_path
from maskgen.core.hub import download, hub_or_folder, is_hub_id, without_advice

Padding = Literal["zero", "keep"]
States = Literal["last", "projected"]
FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
BATCH = 64
LOCAL: Mapping[str, bool] = {"local_files_only": True, "trust_remote_code": False}
"""How `transformers` loads: from this folder, and without running Python files in it."""


class TextEncoder:
    """Any text encoder of `transformers`, frozen: BERT, T5's encoder, CLIP's text model, a causal model's states.

    Args:
        source: a folder or a hub id.
        length: S, tokens of every caption; longer ones are truncated.
        padding: states after the end of a shorter one: `zero`, zeros; or `keep`, the encoder's own states of padding
            tokens, without an attention mask (MicroDiT with CLIP).
        subfolder: of the encoder in `source`; its tokenizer is then in `tokenizer` beside it.
        device: where it runs.
        states: what a caption is embedded as: `last`, the last layer's states; or `projected`, CLIP's pooled and
            projected vector, then the states before the last layer (aMUSEd): one vector more than tokens.

    Raises:
        UserError: `transformers` is not installed, or the encoder cannot be loaded or needs code of its own.
    """

    def __init__(
        self,
        source: str,
        length: int = 77,
        padding: Padding = "zero",
        subfolder: str = "",
        device: torch.device | str = "cpu",
        states: States = "last",
    ) -> None:
        home = _home(source, subfolder)
        transformers = _transformers()
        try:
            tokens_home = home.parent / "tokenizer" if subfolder else home
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(tokens_home, **LOCAL)
            load = _text_part if states == "last" else _projecting
            self._model = load(transformers, home).to(device).eval().requires_grad_(False)
        except (OSError, ValueError, KeyError, RecursionError) as error:
            raise UserError(f"captions.encoder: {source} cannot be loaded: {without_advice(error)}") from None
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token or self._tokenizer.unk_token
        self.source, self.padding, self.states = source, padding, states
        self.n_tokens, self.length = length, length + (states == "projected")
        self.width = int(self._model.config.hidden_size)
        limit = getattr(self._model.config, "max_position_embeddings", None)
        if limit is not None and length > limit:
            raise UserError(f"captions.length: {source} reads at most {limit} tokens, got {length}")

    def fingerprint(self) -> str:
        """SHA-256 of weights and vocabulary, length, padding and states."""
        settings: tuple[object, ...] = (self.n_tokens, self.padding, sorted(self._tokenizer.get_vocab().items()))
        if self.states != "last":
            settings = (*settings, self.states)
        digest = hashlib.sha256(json.dumps(settings).encode())
        for name, value in sorted(self._model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """(B, S, C) float32 on the CPU; an empty text is all zeros, the null caption of guidance."""
        if not texts:
            return torch.zeros(0, self.length, self.width)
        return torch.cat([self._embed(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)])

    @torch.no_grad()
    def empty(self) -> Tensor:
        """(S, C) float32 on the CPU: the encoder's own states of the empty text."""
        return self._encode([""])[0].cpu()

    def _embed(self, texts: Sequence[str]) -> Tensor:
        states = self._encode(texts)
        is_given = torch.tensor([bool(text.strip()) for text in texts], device=states.device)
        return (states * is_given[:, None, None]).cpu()

    def _encode(self, texts: Sequence[str]) -> Tensor:
        """(B, S, C) float32."""
        words = self._tokenizer(
            list(texts), padding="max_length", max_length=self.n_tokens, truncation=True, return_tensors="pt"
        ).to(self._model.device)
        is_word = words["attention_mask"]
        hidden = {} if self.padding == "keep" else {"attention_mask": is_word}
        is_projected = self.states == "projected"
        output = self._model(input_ids=words["input_ids"], output_hidden_states=is_projected, **hidden)
        states: Tensor = (output.hidden_states[-2] if is_projected else output.last_hidden_state).float()
        if self.padding == "zero":
            states = states * is_word[..., None]
        return torch.cat([output.text_embeds.float()[:, None], states], 1) if is_projected else states


def width_of(source: str, subfolder: str = "", default: int = 1024) -> int:
    """C of an encoder in a local folder; `default` for one on the hub, which is not queried.

    Raises:
        UserError: its configuration cannot be read or needs code of its own.
    """
    home = local_path(source) / subfolder
    if not (home / "config.json").is_file():
        return default
    try:
        config = _transformers().AutoConfig.from_pretrained(home, **LOCAL)
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise UserError(f"captions.encoder: {source} cannot be loaded: {without_advice(error)}") from None
    return int(getattr(config, "text_config", config).hidden_size)


def _transformers() -> ModuleType:
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise UserError("captions.encoder needs transformers: pip install 'maskgen[captions]'") from None


def _home(source: str, subfolder: str) -> Path:
    """The local folder of an encoder, downloaded if the source is a hub id."""
    try:
        if is_hub_id(source):
            patterns = [f"{subfolder}/{file}" for file in FILES] + [f"tokenizer/{file}" for file in FILES]
            home = download(source, patterns if subfolder else FILES)
        else:
            home = Path(hub_or_folder(source))
    except FileNotFoundError as error:
        raise UserError(f"captions.encoder: {error}") from None
    return home / subfolder if subfolder else home


def _projecting(transformers: ModuleType, home: Path) -> Any:
    """CLIP's text model with its projection, which must be as wide as the states.

    Raises:
        ValueError: another model, or another width.
    """
    config = transformers.AutoConfig.from_pretrained(home, **LOCAL)
    text = getattr(config, "text_config", config)
    if text.model_type != "clip_text_model" or text.projection_dim != text.hidden_size:
        raise ValueError(
            f"captions.states projected needs CLIP's text model with a projection as wide as its states; this is a "
            f"{text.model_type}"
        )
    options: dict[str, object] = {**LOCAL, "use_safetensors": True, "dtype": torch.float32}
    return transformers.CLIPTextModelWithProjection.from_pretrained(home, **options)


def _text_part(transformers: ModuleType, home: Path) -> Any:
    """The encoder in a folder: the text model of a model of texts and images, the encoder of an encoder-decoder."""
    config = transformers.AutoConfig.from_pretrained(home, **LOCAL)
    options: dict[str, object] = {**LOCAL, "use_safetensors": True, "dtype": torch.float32}
    known = transformers.models.auto.modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
    if config.model_type in known:
        return transformers.AutoModelForTextEncoding.from_pretrained(home, **options)
    model = transformers.AutoModel.from_pretrained(home, **options)
    return getattr(model, "text_model", model)
