"""Networks of the library transformers as denoisers: masked language models, and causal ones with full attention."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.predictions import Categorical, Condition
from maskgen.core.streams import OUTSIDE
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.models.pretrained import Kind, configuration_of, initialised, pretrained, with_tied, without_tied
from maskgen.nn.patterns import packed
from maskgen.tokenizers.text.pretrained import huggingface as read_tokenizer

MASK_NAMES = ("[MASK]", "<mask>")


@MODELS.register("huggingface")
class HuggingFaceDenoiser(nn.Module):
    """A masked or causal language model of `transformers`, with full attention (DiffuLLaMA, arXiv 2410.17891).

    Its weights and configuration come from `source` at the start of a training and are in every checkpoint of it, which
    then needs no source. Code that a source brings along never runs.

    Args:
        vocab_size: V of the tokenizer; ids up to V - 1 are predicted.
        architecture: stored configuration, which is built without weights in place of `source`.
        source: folder, hub id, GGUF file, or `package:NAME`, an installed package with one GGUF file in it.
        config: configuration of a network that is initialised here, `{model_type: llama, ...}`, in place of `source`.
        kind: `mlm` for `AutoModelForMaskedLM`, `causal` for `AutoModelForCausalLM`.
        shift: the output at i - 1 predicts token i, as it did from left to right; null for causal ones only.
        mask: id or name of the token that becomes [MASK] and is never predicted; null takes [MASK] or <mask> of a
            masked language model, else the id V, in a new row with the mean of all where there is none.
        first, last: ids of tokens around each row, for example [CLS] and [SEP]; a shift needs one in front, and null
            takes the one that begins a text.
        anneal: share of the training steps in which the attention of a causal one goes from causal to full; 0 is full
            from the first step.
        blocks: sizes of blocks, [1, 4, 32], within which attention is full, one after the other over these steps; empty
            lets each token attend to more and more tokens after it.
    """

    traits = NetworkTraits(
        objectives=("masked_tokens",),
        tokens=("discrete",),
        streams=("text",),
        conditions=(),
        has_null_label=False,
        has_fixed_grid=False,
        takes_documents=True,
    )

    def __init__(
        self,
        vocab_size: int,
        architecture: Mapping[str, object] | None = None,
        source: str | None = None,
        config: dict[str, object] | None = None,
        kind: Kind = "causal",
        shift: bool | None = None,
        mask: int | str | None = None,
        first: int | None = None,
        last: int | None = None,
        anneal: float = 0.0,
        blocks: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        if (source is None) == (config is None):
            raise ValueError("give source, a pretrained network, or config, the configuration of a new one")
        if not 0 <= anneal <= 1 or any(size < 1 for size in blocks) or list(blocks) != sorted(set(blocks)):
            raise ValueError(f"anneal must be in [0, 1] and blocks rising sizes, got {anneal} and {list(blocks)}")
        if kind == "mlm" and (anneal or blocks):
            raise ValueError("anneal and blocks are for kind causal; a masked language model has full attention")
        self.vocab_size, self.kind, self.anneal, self.blocks = vocab_size, kind, anneal, blocks
        self.traits = self.traits_for({"kind": kind})
        self.shift = kind == "causal" if shift is None else shift
        if architecture is not None:
            self.network = initialised(configuration_of(architecture["config"]), kind)
            self.mask_row = int(str(architecture["mask"]))
        else:
            self.network = initialised(configuration_of(config), kind) if source is None else pretrained(source, kind)
            self.mask_row = self._mask_row(source, mask)
        self.first, self.last = self._first(first), last
        self._require_rows()
        never = torch.arange(vocab_size) == self.mask_row
        self.register_buffer("never", never, persistent=False)
        self.progress = 1.0
        self._chosen: tuple[int, Tensor | None, int] | None = None
        self.network.get_output_embeddings().register_forward_pre_hook(self._selected)
        nn.Module.register_state_dict_post_hook(self, without_tied)
        nn.Module.register_load_state_dict_pre_hook(self, with_tied)

    never: Tensor

    @classmethod
    def traits_for(cls, keys: Mapping[str, object]) -> NetworkTraits:
        """Traits of the network that keys of a recipe describe."""
        return replace(cls.traits, takes_documents=keys["kind"] == "causal")

    def architecture(self) -> dict[str, object]:
        """The configuration that a checkpoint stores, with the row of [MASK]."""
        tree = json.loads(self.network.config.to_json_string())
        return {
            "config": {key: value for key, value in tree.items() if key != "quantization_config"},
            "mask": self.mask_row,
        }

    @property
    def table(self) -> nn.Embedding:
        """The embedding of tokens."""
        found = self.network.get_input_embeddings()
        assert isinstance(found, nn.Embedding)
        return found

    def follow(self, progress: float) -> None:
        """Take the share of the training steps that are done, in [0, 1]."""
        self.progress = progress

    def block_classes(self) -> frozenset[str]:
        """Names of the classes of its layers, which the library does not split over devices."""
        return frozenset(self.network._no_split_modules or ())

    def recompute(self) -> int:
        """Compute activations of the layers again in the backward pass."""
        self.network.gradient_checkpointing_enable({"use_reentrant": False})
        return 1

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,  # noqa: ARG002 - the masks determine the time
        cond: Condition | None = None,  # noqa: ARG002 - text has no classes
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
        valid: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Categorical:
        """x_t (B, L) int64 -> logits (B, L, V), or (M, V) at the positions `where` (B, L).

        Args:
            x_t: tokens, V where masked.
            t: not used.
            cond: not used.
            subset: not supported.
            where: positions to predict.
            valid: (B, L) bool, False for padding: no token attends to it, and its logits are undefined.
            documents: (B, L) int64; a token attends to its own document only.
        """
        if subset is not None:
            raise ValueError("a network of transformers drops no tokens; use keep_ratio 1")
        ids = torch.where(x_t == self.vocab_size, self.mask_row, x_t)
        n_before, n_after = int(self.first is not None), int(self.last is not None)
        ids = F.pad(F.pad(ids, (n_before, 0), value=self.first or 0), (0, n_after), value=self.last or 0)
        self._chosen = n_before - int(self.shift), where, x_t.shape[1]
        try:
            allowed = self._allowed(ids, n_before, n_after, valid, documents)
            if ids.is_meta and self.kind == "mlm":  # the library asks for the values of ids or mask, and there are none
                logits = self.network(inputs_embeds=self.table(ids)).logits
            else:
                logits = self.network(input_ids=ids, attention_mask=allowed, **self._options()).logits
        finally:
            self._chosen = None
        return Categorical(logits[..., : self.vocab_size].masked_fill(self.never, OUTSIDE), where)

    def _options(self) -> dict[str, bool]:
        return {"use_cache": False} if self.kind == "causal" else {}

    def _selected(self, _: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        """Hidden vectors (B, n, D) -> those to be predicted, (B, L, D) or (M, D), in front of the output layer."""
        if self._chosen is None:
            return inputs
        skipped, where, length = self._chosen
        x = inputs[0][:, skipped : skipped + length]
        return (x if where is None else x[where],)

    def _allowed(
        self, ids: Tensor, n_before: int, n_after: int, valid: Tensor | None, documents: Tensor | None
    ) -> Tensor:
        """The attention mask as the library takes it: (B, n) for masked language models, else (B, 1, n, n), added."""
        around = (n_before, n_after)
        shown = None if valid is None else F.pad(valid, around, value=True)
        if self.kind == "mlm":
            return torch.ones_like(ids) if shown is None else shown.long()  # without, the library looks for padding
        inside = None if documents is None else F.pad(documents[:, None].float(), around, mode="replicate")[:, 0].long()
        n = ids.shape[1]
        place = torch.arange(n, device=ids.device)
        allowed = self._pattern(place[:, None], place[None], n)
        mask = packed(shown, inside).mask(n, ids.device)
        allowed = allowed[None, None] if mask is None else allowed & torch.as_tensor(mask)
        bias = torch.zeros(allowed.shape, dtype=self.network.dtype, device=ids.device)
        return bias.masked_fill(~allowed, torch.finfo(bias.dtype).min).expand(len(ids), -1, -1, -1)

    def _pattern(self, query: Tensor, key: Tensor, n: int) -> Tensor:
        """(n, n) bool: full, but for the first share of a training."""
        if not self.training or self.progress >= self.anneal:
            return torch.ones_like(query == key)
        share = self.progress / self.anneal
        if self.blocks:
            size = self.blocks[int(share * len(self.blocks))]
            return key // size <= query // size
        return key <= query + int(share * n)

    def _first(self, given: int | None) -> int | None:
        """The token in front of a row."""
        if given is not None or not self.shift:
            return given
        names = self.network.config
        usual = (names.bos_token_id, names.eos_token_id)
        return next((int(token) for token in usual if isinstance(token, int)), self.mask_row)

    def _mask_row(self, source: str | None, mask: int | str | None) -> int:
        """The id that stands for [MASK]; a row is added where none is left."""
        if isinstance(mask, int):
            return mask
        if source is not None and (mask is not None or self.kind == "mlm"):
            names = {name: token for token, name in enumerate(read_tokenizer(source).token_names())}
            found = next((names[name] for name in ((mask,) if mask else MASK_NAMES) if name in names), None)
            if found is None and mask is not None:
                raise ValueError(
                    f"mask: the tokenizer of {source} has no token {mask!r}; name one it has, or give an id"
                )
            if found is not None:
                return found
        elif mask is not None:
            raise ValueError(f"mask: {mask!r} needs a source with a tokenizer; give an id")
        if self.table.num_embeddings <= self.vocab_size:
            self.network.resize_token_embeddings(self.vocab_size + 1, mean_resizing=False)
            with torch.no_grad():
                table, outputs = self.table.weight, self.network.get_output_embeddings()
                if outputs.weight is not table:
                    outputs.weight[self.vocab_size] = 0  # never read; the same whenever the source is loaded
                table[self.vocab_size] = table[: self.vocab_size].mean(0)
        return self.vocab_size

    def _require_rows(self) -> None:
        n_rows = self.table.num_embeddings
        if n_rows < max(self.vocab_size, self.mask_row + 1):
            raise ValueError(
                f"the network has {n_rows:,} tokens, the tokenizer {self.vocab_size:,}, and [MASK] is {self.mask_row}; "
                "take tokenizer {type: huggingface, source: ...} of the same source"
            )
