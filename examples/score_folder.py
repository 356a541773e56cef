"""Score a folder of images: the Fréchet distance to a reference set under a named protocol."""

import tempfile
from pathlib import Path

import torch

import maskgen
from maskgen.data.image.opening import open_images
from maskgen.evaluation.metrics.frechet import frechet_distance
from maskgen.evaluation.metrics.statistics import collect
from maskgen.sample.judges import pick_extractor


def main(num: int = 200, reference: str = "fashion_mnist:test", protocol: str = "fashion-classifier") -> float:
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "samples"
        maskgen.load("fashion-maskgit", device="cpu")(num).save(folder)  # a folder of PNG files
        extractor = pick_extractor(protocol, None, torch.device("cpu"))
        samples = collect(open_images(str(folder)), extractor)
    real = collect(open_images(reference), extractor)
    distance = frechet_distance(samples.moments, real.moments)
    print(f"frechet_distance[{protocol}] of {samples.n} images to {real.n} of {reference}: {distance:.3f}")
    print("too few images for a comparison: the distance falls with their number (maskgen fid prints its error)")
    return distance


if __name__ == "__main__":
    main()
