"""Fill holes: the centre of a picture, and the gaps of a text. What is given never changes."""

import torch

import maskgen


def main(picture: str = "infill.png") -> list[str]:
    images = maskgen.load("fashion-maskgit", device="cpu")
    given = images(1, ["Pullover"], seed=3).pixels[0]  # (C, H, W) uint8; a file or a PIL image does as well
    completed = images(9, ["Pullover"], picture=given, hole="center", seed=10).pixels
    border = torch.ones(28, 28, dtype=torch.bool)
    border[7:21, 7:21] = False
    n_changed = int((completed[:, 0, border] != given[0, border]).sum())
    maskgen.grid(torch.cat([given[None], completed]), n_columns=10).save(picture)
    print(f"{picture}: the picture and nine completions of its centre; {n_changed} pixels outside the hole changed")

    text = maskgen.load("kjv-md4", device="cpu")
    output = text(3, infill="And God said, Let there be _____: and there was _____.", sampler="first-hitting", seed=2)
    assert output.unmasked_at is not None
    for line, steps in zip(output.texts, output.unmasked_at, strict=True):
        print(f"{line!r}, gaps filled in {int(steps.max())} steps")
    return output.texts


if __name__ == "__main__":
    main()
