"""MDT version 1: the official network, both passes of its loss and its guidance beside ours.

    python benchmarks/parity/mdt.py --public DIR    # a copy of sail-sg/MDT, branch mdtv1

Outputs of all tokens, outputs with tokens dropped (side-interpolater), power-cosine guidance of three channels, and
the sum of both passes' losses with equal noise and equal dropped tokens, and guided samples of four steps.
"""

from __future__ import annotations

from harness import run
from mdt_passes import DROPPED, parity_of

PARITY = parity_of("mdt", "MDT", 2, keep_ratio=1 - DROPPED)

if __name__ == "__main__":
    run(PARITY, __doc__)
