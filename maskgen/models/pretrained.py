"""Reading networks of the library transformers, and state dicts in which tied parameters are stored once."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from maskgen.core.hub import model_files, without_advice

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Kind = Literal["mlm", "causal"]


def pretrained(source: str, kind: Kind) -> PreTrainedModel:
    """A network with its weights, float32 on the CPU; without weights on the meta device.

    Raises:
        ValueError: nothing that can be loaded.
    """
    transformers = _library()
    folder, gguf = model_files(source)
    options: dict[str, object] = {"trust_remote_code": False} | ({} if gguf is None else {"gguf_file": gguf})
    entry = transformers.AutoModelForMaskedLM if kind == "mlm" else transformers.AutoModelForCausalLM
    try:
        if torch.get_default_device().type == "meta":
            return initialised(transformers.AutoConfig.from_pretrained(folder, **options), kind)
        network: PreTrainedModel = entry.from_pretrained(folder, dtype=torch.float32, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ValueError(f"source {source}: {without_advice(error)}") from None
    return network


def initialised(config: PretrainedConfig, kind: Kind) -> PreTrainedModel:
    """A network of a configuration, float32, with new weights."""
    transformers = _library()
    entry = transformers.AutoModelForMaskedLM if kind == "mlm" else transformers.AutoModelForCausalLM
    network: PreTrainedModel = entry.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return network


def configuration_of(tree: object) -> PretrainedConfig:
    """A configuration from its keys.

    Raises:
        ValueError: no `model_type`, or one that the library has not.
    """
    keys = {str(key): value for key, value in tree.items()} if isinstance(tree, Mapping) else {}
    kind = keys.pop("model_type", None)
    if not isinstance(kind, str):
        raise ValueError("config needs model_type, for example llama")
    try:
        config: PretrainedConfig = _library().AutoConfig.for_model(kind, **keys)
    except (ValueError, TypeError) as error:
        raise ValueError(f"config: {without_advice(error)}") from None
    return config


def _library() -> ModuleType:
    """The package transformers, without its progress bars.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError("model huggingface needs transformers: pip install 'maskgen[huggingface]'") from None
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _tied(module: nn.Module) -> dict[str, str]:
    """Names of parameters that are another one's too -> the name that is kept."""
    kept: dict[int, str] = {}
    pairs = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        first = kept.setdefault(id(parameter), name)
        if first != name:
            pairs[name] = first
    return pairs


def without_tied(module: nn.Module, state: dict[str, Tensor], prefix: str, _: object) -> None:
    """Leave parameters that are stored already out of a state dict."""
    for name in _tied(module):
        state.pop(prefix + name, None)


def with_tied(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Add parameters that are stored under another name to a state dict."""
    for name, first in _tied(module).items():
        if prefix + first in state:
            state[prefix + name] = state[prefix + first]
