"""Write a sampler of your own: an unmasking order and an unmasking schedule, on a checkpoint that knows neither."""

from dataclasses import dataclass

import torch
from torch import Tensor

import maskgen
from maskgen.sample.judges import pick_extractor
from maskgen.samplers import ORDERS, MaskedSampler, Order, Proposal
from maskgen.samplers.masked.unmasking import Even


@ORDERS.register("outwards")  # recipes and the command line now accept order=outwards
@dataclass(frozen=True)
class Outwards(Order):
    """Tokens near the centre of the grid first, with `noise` in units of the distance.

    Args:
        noise: standard deviation of the noise added to each distance.
    """

    noise: float = 0.3

    def score(self, proposal: Proposal, rng: maskgen.Rng) -> Tensor:
        """(B, L) float64, highest first; -inf at positions that are not masked."""
        height, width = proposal.grid
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        distance = torch.hypot(y - (height - 1) / 2, x - (width - 1) / 2).flatten().double()
        noise = rng.normal(proposal.where.shape).double()
        return (self.noise * noise - distance).masked_fill(~proposal.where, -torch.inf)


def main(num: int = 100, picture: str = "own-sampler.png") -> dict[str, float]:
    pipeline = maskgen.load("fashion-maskgit", device="cpu")
    judge = pick_extractor("fashion-classifier", None, pipeline.device)
    own = MaskedSampler(order=Outwards(), unmasking=Even(), steps=8)
    accuracy = {}
    for name, sampler in {"own": own, "maskgit": maskgen.samplers.maskgit(steps=8)}.items():
        output = pipeline(num, sampler=sampler)
        found = judge(output.pixels).logits.argmax(1)
        accuracy[name] = float((found == torch.tensor(output.labels)).float().mean())
        print(f"{name}: the classifier finds the class of {accuracy[name]:.1%} of {num} samples")
    pipeline(20, sampler={"type": "masked", "order": "outwards", "unmasking": "even"}).save(picture, n_columns=10)
    return accuracy


if __name__ == "__main__":
    main()
