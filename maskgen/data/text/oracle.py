"""A language with a known answer: sequences of a random tree grammar, and their exact probabilities.

A network trained on samples can be held against the entropy, and a sampler or an estimate of likelihood against the
exact denoiser, at lengths where a joint distribution can't be written down.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskgen.core.predictions import Categorical, Condition
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset

MAX_STATES = 2**18
"""Sequences that `OracleTree.entropy` is ready to enumerate."""


class OracleTree:
    """A full binary tree of symbols; its leaves, from left to right, are a sequence of L = 2^depth tokens.

    The root has a random distribution, and every node draws the pair of symbols below it from one random table given
    its own. All is float64. Also a `Denoiser`, the optimal one; mask id V.

    Args:
        depth: of the tree.
        symbols: V, of inner nodes and tokens alike.
        seed: of the grammar.
        sharpness: standard deviation of the logits of its tables; 0 makes all sequences equally likely.

    Raises:
        ValueError: a depth below 1, fewer than 2 symbols, or a negative sharpness.
    """

    def __init__(self, depth: int = 3, symbols: int = 4, seed: int = 0, sharpness: float = 2.0) -> None:
        if depth < 1 or symbols < 2 or sharpness < 0:
            raise ValueError(
                "depth must be at least 1, symbols at least 2 and sharpness at least 0, "
                f"got {depth}, {symbols} and {sharpness}"
            )
        self.depth, self.vocab_size, self.length = depth, symbols, 2**depth
        rng = Rng.stream("oracle tree", seed)
        root, pairs = (sharpness * rng.normal((n, symbols**2)).double() for n in (1, symbols))
        self.root = torch.softmax(root[0, :symbols], 0)  # (V,)
        self.table = torch.softmax(pairs, 1).view(symbols, symbols, symbols)  # (V, V, V): above, left, right

    def sample(self, n: int, rng: Rng) -> Tensor:
        """(n, L) int64 on the CPU."""
        nodes = Categorical(self.root.log().expand(n, 1, -1)).sample(rng)  # (n, 1)
        for _ in range(self.depth):
            pair = Categorical(self.table.log().flatten(1)[nodes]).sample(rng)
            nodes = torch.stack([pair // self.vocab_size, pair % self.vocab_size], 2).flatten(1)  # twice as many
        return nodes

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability of the visible tokens, x (B, L) -> (B,); masked ones are summed over."""
        evidence, log_scale = self._upward(x)
        return (evidence[0][:, 0] @ self.root.to(x.device)).log() + log_scale

    def posterior(self, x_t: Tensor) -> Categorical:
        """p(token | visible tokens) at every position, logits (B, L, V); visible ones are certain.

        By belief propagation: evidence goes up from the leaves, and what the rest of the tree says comes down.
        """
        evidence, _ = self._upward(x_t)
        table = self.table.to(x_t.device)
        above = self.root.to(x_t.device).expand(len(x_t), 1, -1)  # (B, nodes, V)
        for below in evidence[1:]:
            left, right = below[:, 0::2], below[:, 1::2]
            to_left = torch.einsum("bna,alr,bnr->bnl", above, table, right)
            to_right = torch.einsum("bna,alr,bnl->bnr", above, table, left)
            above = torch.stack([to_left, to_right], 2).flatten(1, 2)
            above = above / above.sum(-1, keepdim=True)
        return Categorical(torch.log_softmax((above * evidence[-1]).log(), -1))

    def entropy(self) -> float:
        """Nats of a sequence, from the list of all.

        Raises:
            ValueError: there are too many; the mean of -log_prob over samples is an estimate.
        """
        if self.vocab_size**self.length > MAX_STATES:
            raise ValueError(
                f"{self.vocab_size}^{self.length} sequences are more than the {MAX_STATES} that can be listed; "
                "estimate the entropy by the mean of -log_prob over samples"
            )
        every = torch.cartesian_prod(*[torch.arange(self.vocab_size)] * self.length)
        log_prob = self.log_prob(every)
        return -float((log_prob.exp() * log_prob).sum())

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,  # noqa: ARG002 - the posterior does not depend on it
        cond: Condition | None = None,  # noqa: ARG002 - there are no classes
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical:
        """The posterior, at `where` (B, L) only if given; tokens that are dropped tell it nothing."""
        if subset is not None:
            x_t = torch.where(subset.is_kept(), x_t, self.vocab_size)
        logits = self.posterior(x_t).logits
        return Categorical(logits if where is None else logits[where], where)

    def _upward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Chances of what is seen below each node given its symbol, each level from the root (B, nodes, V) scaled to
        sum 1 a node; and the log of the scales (B,)."""
        one_hot = torch.nn.functional.one_hot(x, self.vocab_size + 1)[..., :-1].double()
        level = torch.where((x == self.vocab_size)[..., None], 1.0, one_hot)
        levels, log_scale = [level], torch.zeros(len(x), dtype=torch.float64, device=x.device)
        table = self.table.to(x.device)
        for _ in range(self.depth):
            level = torch.einsum("alr,bnl,bnr->bna", table, level[:, 0::2], level[:, 1::2])
            scale = level.sum(-1, keepdim=True)
            level = level / scale
            log_scale = log_scale + scale.log().sum((1, 2))
            levels.append(level)
        return levels[::-1], log_scale
