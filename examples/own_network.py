"""Train a network of your own in a loop of your own, then sample from it: digits, 8 x 8 pixels of 17 grey levels."""

import torch
from torch import Tensor, nn

import maskgen
from maskgen.data.image.digits import Digits
from maskgen.objectives import MaskedTokens
from maskgen.processes import Absorbing
from maskgen.tokenizers.image.pixels import PixelTokenizer

LEVELS, WIDTH = 17, 64


class Network(nn.Module):
    """Tokens (B, 64) with id 17 for [MASK] -> logits (B, 64, 17) of every position; any network does."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(LEVELS + 1, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(64, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, LEVELS)

    def forward(self, x_t: Tensor, *_: object, **__: object) -> Tensor:  # the time and the class are not used here
        logits: Tensor = self.head(self.body(self.embedding(x_t) + self.positions))
        return logits


def main(steps: int = 150, picture: str = "own-network.png") -> float:
    torch.manual_seed(0)
    tokenizer = PixelTokenizer((1, 8, 8), levels=LEVELS)
    images, _ = Digits().split("train").__getitems__(range(1500))
    tokens = tokenizer.encode(images / 255)  # (1500, 64)

    network = Network()
    objective = MaskedTokens(Absorbing(LEVELS))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for step in range(steps):
        rng = maskgen.Rng.stream(step)  # every draw of the step comes from it
        batch = maskgen.Batch(tokens[torch.randint(len(tokens), (32,))])
        loss = objective(network, batch, rng).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"cross-entropy {loss.item():.3f} nats (uniform baseline {objective.baseline:.3f})")

    sampler = maskgen.samplers.maskgit(steps=8)
    denoise = maskgen.Guidance().bind(network.eval(), cond=None)
    all_masked = torch.full((20, 64), LEVELS)
    samples = sampler(denoise, all_masked, maskgen.Rng.per_sample(range(20)), mask_id=LEVELS, grid=(8, 8))
    maskgen.grid((tokenizer.decode(samples) * 255).round().byte(), n_columns=10).save(picture)
    return loss.item()


if __name__ == "__main__":
    main()
