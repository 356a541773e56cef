"""Images in the directions of most or least variance: what reconstruction learns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from maskgen.evaluation.probes.representation import Encoder

End = Literal["top", "bottom"]


@dataclass(frozen=True)
class VarianceSubspace:
    """Principal directions of images from one end, and the projection of images to them.

    Reconstruction spends its capacity on the top, while the bottom holds much of what separates classes (arXiv
    2402.11337, section 3).

    Attributes:
        end: `top`, the directions of largest variance, or `bottom`.
        share: of the variance that they hold.
        mean: (D,), of the images they were found on.
        basis: (D, K), orthonormal.
    """

    end: End
    share: float
    mean: Tensor
    basis: Tensor

    @classmethod
    def fit(cls, images: Tensor, end: End, share: float) -> VarianceSubspace:
        """The fewest top directions that hold at least `share` of the variance of images (N, C, H, W); or the others.

        The bottom directions with `share` are those that the top ones of 1 - share leave over.

        Raises:
            ValueError: a share outside (0, 1), or no direction is left.
        """
        if not 0 < share < 1:
            raise ValueError(f"the share of variance must be in (0, 1), got {share}")
        x = images.flatten(1).double()
        mean = x.mean(0)
        values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        held = values.cumsum(0) / values.sum()
        n_top = int((held < (share if end == "top" else 1 - share)).sum()) + 1
        basis = vectors[:, :n_top] if end == "top" else vectors[:, n_top:]
        if not basis.shape[1]:
            raise ValueError(f"no direction holds the last {share:g} of the variance; use a larger share")
        return cls(end, share, mean.float(), basis.float())

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), their deviation from the mean projected to the directions; not clipped to [0, 1]."""
        basis, mean = self.basis.to(images), self.mean.to(images)
        x = images.flatten(1) - mean
        return (mean + x @ basis @ basis.T).view_as(images)


def within(encoder: Encoder, subspace: VarianceSubspace, images: str) -> Encoder:
    """The encoder of projected images; `images` identifies those that the directions were found on."""
    label = f"{subspace.end} {subspace.share:g} of variance, {subspace.basis.shape[1]} directions"
    return replace(
        encoder,
        name=f"{encoder.name}; {label}",
        identity={**encoder.identity, "subspace": [subspace.end, subspace.share, images]},
        network=lambda x: encoder.network(subspace(x)),
    )
