"""How a language model is called after its export to transformers: the README of the folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

EntryClass = Literal["AutoModelForCausalLM", "AutoModelForMaskedLM"]
Attention = Literal["library", "full", "causal", "blocks"]

_MEANING: dict[Attention, str] = {
    "library": "It is a masked language model: every token attends to every other, as transformers does by itself.",
    "full": "**It is bidirectional**: every token attends to every other. transformers knows its architecture as one "
    "from left to right, so that `generate`, or a call without the attention mask below, gives other outputs, without "
    "a warning.",
    "causal": "It generates from left to right, as transformers does by itself: `generate` works. Rows begin with the "
    "token below.",
    "blocks": "**It attends to whole blocks**: a token attends to its own block and those before it. transformers "
    "knows its architecture as one from left to right, so that `generate`, or a call without the attention mask below, "
    "gives other outputs, without a warning.",
}


@dataclass(frozen=True)
class Usage:
    """How logits of token i are had from a network of transformers.

    Attributes:
        entry: class of transformers that loads it.
        attention: which tokens attend to which: `library`, as it is by default; `full` and `blocks` need a mask.
        mask: id of [MASK], which is never predicted.
        shift: the output at i - 1 predicts token i.
        first, last: ids of tokens around a row, None for none.
        block_length: of `blocks`.
    """

    entry: EntryClass
    attention: Attention
    mask: int
    shift: bool = False
    first: int | None = None
    last: int | None = None
    block_length: int = 0

    def tree(self) -> dict[str, object]:
        """Under the key `maskgen` of config.json."""
        return asdict(self)

    def readme(self, title: str, summary: str) -> str:
        """README.md: what it is, and Python that computes the logits of a row."""
        code = "\n".join(self._code())
        return f"""---
library_name: transformers
tags: [maskgen, masked-diffusion]
---
# {title}

{summary}

{_MEANING[self.attention]} No code comes with these files, and none is needed.

```python
{code}
```
Sampling needs a loop that unmasks tokens step by step: `maskgen sample` on the checkpoint that this was exported from.
"""

    def _code(self) -> list[str]:
        ends = [(name, token) for name, token in (("first", self.first), ("last", self.last)) if token is not None]
        lines = [
            "import torch",
            "import transformers",
            "",
            f'network = transformers.{self.entry}.from_pretrained(".").eval()',
            f"ids = torch.full((1, 8), {self.mask})  # [MASK] at tokens to predict, known tokens elsewhere",
            *(f"{name} = torch.full((1, 1), {token})" for name, token in ends),
        ]
        row = "ids"
        if ends:
            names = ["ids", *(["last"] if self.last is not None else [])]
            row = f"torch.cat([{', '.join((['first'] if self.first is not None else []) + names)}], 1)"
        lines.append(f"row = {row}")
        if self.attention == "full":
            lines.append("mask = torch.zeros(len(row), 1, row.shape[1], row.shape[1])  # added to the attention scores")
        elif self.attention == "blocks":
            lines.append(f"block = torch.arange(row.shape[1]) // {self.block_length}")
            lines.append("mask = torch.where(block[:, None] >= block, 0.0, -torch.inf)[None, None]  # added to scores")
        given = "" if self.attention in ("library", "causal") else ", attention_mask=mask"
        lines.append("with torch.no_grad():")
        lines.append(f"    logits = network(input_ids=row{given}).logits")
        lines += self._chosen()
        return [*lines, f"logits[..., {self.mask}] = -torch.inf  # never predicted"]

    def _chosen(self) -> list[str]:
        """Lines that take the outputs that predict the tokens of `ids`."""
        if self.shift and self.first is None:
            return ["logits = torch.cat([logits[:, :1], logits[:, :-1]], 1)  # the output at i - 1 predicts token i"]
        start = int(self.first is not None) - int(self.shift)
        if start == 0 and self.first is None and self.last is None:
            return []
        return [f"logits = logits[:, {start} : {start} + ids.shape[1]]  # those that predict the tokens of ids"]
