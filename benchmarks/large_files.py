"""Peak memory of converting and loading a large checkpoint, over the size of its weights.

    python benchmarks/large_files.py [--depth 15] [--folder DIR]

Writes a DiT of width 1152 with random weights in its published layout (depth 15: 1.5 GB in float32) as .pt, as
.safetensors and in shards, then converts and loads each in a process of its own. The peak is that of resident memory
(mapped pages of files included), less what the process had after its imports.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor

from maskgen.nn.embeddings import sincos_2d

WIDTH, CLASSES, SIDE = 1152, 1000, 16


def state(depth: int) -> dict[str, Tensor]:
    """A public DiT-XL/2 of another depth."""
    draw = torch.Generator().manual_seed(0)

    def linear(name: str, n_out: int, n_in: int) -> dict[str, Tensor]:
        return {
            f"{name}.weight": torch.randn(n_out, n_in, generator=draw).mul_(0.02), f"{name}.bias": torch.zeros(n_out)
        }  # fmt: skip

    found = {"pos_embed": sincos_2d((SIDE, SIDE), WIDTH)[None]}
    found |= {"x_embedder.proj.weight": torch.randn(WIDTH, 4, 2, 2), "x_embedder.proj.bias": torch.zeros(WIDTH)}
    found |= {**linear("t_embedder.mlp.0", WIDTH, 256), **linear("t_embedder.mlp.2", WIDTH, WIDTH)}
    found |= {"y_embedder.embedding_table.weight": torch.randn(CLASSES + 1, WIDTH)}
    for n in range(depth):
        sizes = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
        for name, (n_out, n_in) in {**sizes, "adaLN_modulation.1": (6, 1)}.items():
            found |= linear(f"blocks.{n}.{name}", n_out * WIDTH, n_in * WIDTH)
    return found | linear("final_layer.linear", 32, WIDTH) | linear("final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH)


def write(folder: Path, depth: int) -> dict[str, Path]:
    """The checkpoint as a file of torch, of safetensors, and in four shards."""
    tensors = state(depth)
    torch.save(tensors, folder / "dit.pt")
    save_file(tensors, folder / "dit.safetensors")
    shards = folder / "shards"
    shards.mkdir()
    homes = {name: f"model-{index % 4}.safetensors" for index, name in enumerate(tensors)}
    for file in set(homes.values()):
        save_file({name: tensors[name] for name, home in homes.items() if home == file}, shards / file)
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    return {".pt": folder / "dit.pt", ".safetensors": folder / "dit.safetensors", "shards": shards}


def peak(work: Callable[[], object]) -> float:
    """Peak of resident memory while `work` runs, less that before, in bytes; the process must be a fresh one."""
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0 - before


def convert(source: str, target: str, *dtype: str) -> float:
    """Peak of `maskgen convert`."""
    from maskgen.checkpoints.convert.conversion import run

    return peak(lambda: run(source, target, dtype=next(iter(dtype), None)))


def load(source: str, *dtype: str) -> float:
    """Peak of building and filling the network of a checkpoint."""
    from accelerate import init_empty_weights  # noqa: F401 - imported before memory is measured

    from maskgen.checkpoints import checkpoint
    from maskgen.tokenizers.image.patches import PatchTokenizer

    # the autoencoder is not there; a token has as many numbers as a patch of 16 of its latents
    checkpoint.load_tokenizer = lambda *_: _Latents(PatchTokenizer, 16)  # type: ignore[assignment]
    found = checkpoint.read_checkpoint(source)
    number = {"bf16": torch.bfloat16}.get(next(iter(dtype), ""))
    return peak(lambda: checkpoint.load_system(found, number))


def _Latents(kind: type, width: int) -> object:
    tokenizer = kind((1, 4 * SIDE, 4 * SIDE), 4)
    assert tokenizer.token_width == width
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="where the files go for the time of the measurement")
    options = parser.parse_args()
    with TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for kind, file in write(folder, options.depth).items():
            weights = sum(path.stat().st_size for path in ([file] if file.is_file() else file.iterdir()))
            target = folder / f"ours{kind}"
            report("convert", kind, weights, "convert", file, target)
            if kind == ".safetensors":
                report("convert --dtype bf16", kind, weights, "convert", file, folder / "half", "bf16")
                report("load in float32", "checkpoint", weights, "load", target)
                report("load in bfloat16", "checkpoint of bf16", weights / 2, "load", folder / "half", "bf16")


def report(what: str, kind: str, weights: float, *command: object) -> None:
    """Run a step in a process of its own and print its row."""
    code = [sys.executable, __file__, *map(str, command)]
    most = float(subprocess.run(code, capture_output=True, text=True, check=True).stdout)
    print(f"{what:<22} {kind:<20} {weights / 1e9:.2f} GB  peak {most / 1e9:.2f} GB, {most / weights:.2f} x the weights")


if __name__ == "__main__":
    if sys.argv[1:2] in (["convert"], ["load"]):
        print({"convert": convert, "load": load}[sys.argv[1]](*sys.argv[2:]))
    else:
        main()
