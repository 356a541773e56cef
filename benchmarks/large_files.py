"""Peak memory of converting and loading a large checkpoint, over the size of its weights.

    python benchmarks/large_files.py [--depth 15] [--folder DIR]

Writes a DiT of width 1152 with random weights in its published layout (depth 15: 1.5 GB in float32) as .pt, as
.safetensors and in shards, then converts and loads each in a process of its own. The peak is that of resident memory
(mapped pages of files included), less what the process had after the same step
with a network of one block, when all is imported.
"""

from __future__ import annotations

import argparse
import json
import shutil
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
SMALL = "small"


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


def write(folder: Path, kind: str, tensors: dict[str, Tensor]) -> Path:
    """The checkpoint as a file of torch, of safetensors, or in four shards."""
    folder.mkdir()
    if kind == ".pt":
        torch.save(tensors, folder / "dit.pt")
        return folder / "dit.pt"
    homes = {name: f"model-{index % 4}.safetensors" for index, name in enumerate(tensors)}
    if kind == ".safetensors":
        homes = dict.fromkeys(tensors, "model.safetensors")
    for file in sorted(set(homes.values())):
        save_file({name: tensors[name] for name, home in homes.items() if home == file}, folder / file)
    if kind == "shards":
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    return folder


def peak(work: Callable[[], object]) -> float:
    """Peak of resident memory while `work` runs, less that before, in bytes; the process must be a fresh one."""
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(line: str) -> float:
    """Bytes of a line of /proc/self/status; `ru_maxrss` would include what the parent had before this process began."""
    status = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    return float(status[line].split()[0]) * 1024


def convert(small: str, source: str, target: str, *dtype: str) -> float:
    """Peak of `maskgen convert`."""
    from maskgen.checkpoints.convert.conversion import run

    run(small, f"{target}-small")
    return peak(lambda: run(source, target, dtype=next(iter(dtype), None)))


def load(small: str, source: str, *dtype: str) -> float:
    """Peak of building and filling the network of a checkpoint."""
    from maskgen.checkpoints import checkpoint
    from maskgen.tokenizers.image.patches import PatchTokenizer

    # the autoencoder is not there; a token has as many numbers as a patch of 16 of its latents
    checkpoint.load_tokenizer = lambda *_: _Latents(PatchTokenizer, 16)  # type: ignore[assignment]
    from maskgen.checkpoints.convert.conversion import run

    checkpoint.load_system(checkpoint.read_checkpoint(run(small, f"{source}-small")))
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
    tensors = state(options.depth)
    weights = sum(value.nbytes for value in tensors.values())
    for kind in ("shards", ".safetensors", ".pt"):
        with TemporaryDirectory(dir=options.folder) as name:
            write(Path(name) / SMALL, ".safetensors", state(1))
            file, target = write(Path(name) / "public", kind, tensors), Path(name) / "ours"
            report("convert", kind, weights, "convert", name, file, target)
            if kind == "shards":
                report("load in float32", "checkpoint", weights, "load", name, target)
                shutil.rmtree(target)
                report("convert --dtype bf16", kind, weights, "convert", name, file, target, "bf16")
                report("load in bfloat16", "checkpoint of bf16", weights / 2, "load", name, target, "bf16")


def report(what: str, kind: str, weights: float, step: str, folder: str, *arguments: object) -> None:
    """Run a step in a process of its own and print its row."""
    code = [sys.executable, __file__, step, f"{folder}/{SMALL}", *map(str, arguments)]
    most = float(subprocess.run(code, capture_output=True, text=True, check=True).stdout)
    for path in Path(folder).glob("*-small"):
        shutil.rmtree(path)
    print(
        f"{what:<22} {kind:<20} {weights / 1e9:.2f} GB  peak {most / 1e9:.2f} GB, {most / weights:.2f} x the weights",
        flush=True,
    )


if __name__ == "__main__":
    if sys.argv[1:2] in (["convert"], ["load"]):
        print({"convert": convert, "load": load}[sys.argv[1]](*sys.argv[2:]))
    else:
        main()
