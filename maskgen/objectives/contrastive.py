"""The contrastive term of MAGE-C: two views of an image attract, views of different images repel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from maskgen.core.devices import rows_of_ranks


class Contrastive(BaseModel):
    """InfoNCE loss of vectors of two views (arXiv 2211.09117, section 3.3; arXiv 2002.05709, eq. 1).

    Attributes:
        weight: of the term, which is added to the loss.
        temperature: divides cosines.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(0.1, gt=0)
    temperature: float = Field(0.2, gt=0)

    def __call__(self, vectors: Tensor) -> Tensor:
        """(2, B, P) -> scalar; negatives are the other rows of all processes, of one micro-batch where it is split."""
        return info_nce(rows_of_ranks(vectors, dim=1), self.temperature)


def info_nce(vectors: Tensor, temperature: float) -> Tensor:
    """Mean of -log softmax(cosine / temperature) at the other view, over 2B anchors: (2, B, P) -> scalar, float32.

    The softmax of an anchor is over the 2B - 1 other vectors; the loss of equal vectors is log(2B - 1).
    """
    n = vectors.shape[1]
    z = F.normalize(
        vectors.float().flatten(0, 1), dim=1
    )  # (2B, P), in float32: half precision is too coarse for the sums
    similarity = z @ z.T / temperature
    similarity.fill_diagonal_(-torch.inf)
    place = torch.arange(2 * n, device=z.device)
    return F.cross_entropy(similarity, (place + n) % (2 * n))
