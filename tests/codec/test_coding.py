"""Files of text and images through `maskgen compress` and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from maskgen.checkpoints.checkpoint import read_checkpoint
from maskgen.codec import container
from maskgen.core.errors import UserError
from maskgen.data.image.pictures import to_pil
from maskgen.pipelines.coding import Coding, RowCoder
from maskgen.sample import codec

pytest.importorskip("constriction")

TEXT = "In the beginning God created the heaven and the earth. " * 3


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("codec") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def packed(text_file: Path) -> Path:
    path = text_file.with_name("text.mgc")
    codec.compress("kjv-ar", str(text_file), str(path))
    return path


@pytest.mark.parametrize("text", ["", "In the beginning", "b" * 128])
def test_a_text_of_any_length_comes_back(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    codec.compress("kjv-ar", str(tmp_path / "a.txt"), str(tmp_path / "a.mgc"))
    codec.decompress(str(tmp_path / "a.mgc"), str(tmp_path / "b.txt"))
    assert (tmp_path / "b.txt").read_text(encoding="utf-8") == text


def test_a_text_comes_back(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "back.txt"
    codec.decompress(str(packed), str(out), batch_size=1)
    assert out.read_text(encoding="utf-8") == TEXT
    assert packed.stat().st_size < len(TEXT)


@pytest.mark.parametrize("name", ["kjv-ar", "kjv-md4"])
def test_the_code_has_the_length_of_the_likelihood_and_no_batch_changes_it(name: str) -> None:
    checkpoint = read_checkpoint(name)
    rows = checkpoint.text_tokenizer().encode(TEXT[:96]).view(3, 32)
    coder, alone = RowCoder(checkpoint, 3), RowCoder(checkpoint, 1)
    coding = Coding(2, "random", 4)
    found = list(coder.encode(rows, coding))
    assert found == list(alone.encode(rows, coding))
    assert all(abs(code.n_bits - bits) <= 64 + 1e-3 * bits for code, bits in found)
    back = torch.cat(list(alone.decode([code for code, _ in found], 3, 32, coding)))
    assert torch.equal(back, rows)


@pytest.mark.parametrize("order", ["halton", "random", "entropy"])
def test_image_tokens_come_back_in_every_order(order: str, tmp_path: Path) -> None:
    image = to_pil(torch.randint(0, 256, (1, 1, 28, 28), generator=torch.Generator().manual_seed(0)).byte())[0]
    image.save(tmp_path / "a.png")
    codec.compress("fashion-maskgit", str(tmp_path / "a.png"), str(tmp_path / "a.mgc"), order=order, steps=4)
    codec.decompress(str(tmp_path / "a.mgc"), str(tmp_path / "b.png"))
    codec.compress("fashion-maskgit", str(tmp_path / "a.png"), str(tmp_path / "c.mgc"), order=order, steps=7)
    codec.decompress(str(tmp_path / "c.mgc"), str(tmp_path / "d.png"))
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "d.png").read_bytes()


def test_a_preview_keeps_the_size_and_needs_no_checksum(tmp_path: Path) -> None:
    Image.new("L", (28, 28), 90).save(tmp_path / "a.png")
    codec.compress("fashion-maskgit", str(tmp_path / "a.png"), str(tmp_path / "a.mgc"), steps=4)
    codec.decompress(str(tmp_path / "a.mgc"), str(tmp_path / "b.png"), groups=1)
    assert Image.open(tmp_path / "b.png").size == (28, 28)


def test_names_of_a_folder_come_back_inside_the_folder_only(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        Image.new("L", (28, 28), 90).save(tmp_path / "in" / name)
    packed = tmp_path / "x.mgc"
    codec.compress("fashion-maskgit", str(tmp_path / "in"), str(packed), steps=2)
    codec.decompress(str(packed), str(tmp_path / "out"))
    assert (tmp_path / "out" / "sub" / "b.png").is_file()
    header, pieces = container.from_bytes(packed.read_bytes(), "x")
    packed.write_bytes(container.to_bytes(container.Header(**{**vars(header), "names": ("../a.png", "b.png")}), pieces))
    with pytest.raises(UserError, match="outside"):
        codec.decompress(str(packed), str(tmp_path / "evil"))


def test_another_checkpoint_is_refused(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another checkpoint"):
        codec.decompress(str(packed), str(tmp_path / "x.txt"), checkpoint="kjv-md4")


@pytest.mark.parametrize(("content", "message"), [(b"\xff\xfe", "UTF-8"), ("emoji \U0001f600".encode(), "no token")])
def test_a_text_that_cannot_be_represented_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        codec.compress("kjv-ar", str(tmp_path / "a.txt"), str(tmp_path / "a.mgc"))


def test_an_image_of_another_size_is_refused_by_name(tmp_path: Path) -> None:
    Image.new("RGB", (30, 28)).save(tmp_path / "wide.png")
    with pytest.raises(UserError, match=r"wide\.png is 30 x 28"):
        codec.compress("fashion-maskgit", str(tmp_path / "wide.png"), str(tmp_path / "a.mgc"))


@pytest.mark.parametrize(("source", "message"), [("fashion-vq", "tokenizer"), ("fashion-classifier", "classifier")])
def test_only_generators_code(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        codec.compress(source, "x.png", str(tmp_path / "a.mgc"))
