"""Tiny text encoders with random weights, and folders of captioned pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "boat", "car", "tree", "the", "of"]
SIZES: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def tiny_encoder(home: Path, kind: str = "bert", seed: int = 0, length: int = 32) -> Path:
    """A folder with an encoder of width 8 and its tokenizer, as the hub would have it."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    n = len(WORDS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "bert":
            config = transformers.BertConfig(vocab_size=n, max_position_embeddings=32, **SIZES)
            model: Any = transformers.BertModel(config)
        elif kind == "t5":
            sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
            model = transformers.T5ForConditionalGeneration(
                transformers.T5Config(vocab_size=n, decoder_start_token_id=0, **sizes)
            )
        else:
            text = {"vocab_size": n, "max_position_embeddings": length, "bos_token_id": 2, "eos_token_id": 3, **SIZES}
            text |= {"projection_dim": 8}
            vision = {**SIZES, "image_size": 8, "patch_size": 4}
            model = transformers.CLIPModel(
                transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
            )
    model.save_pretrained(home)
    fast.save_pretrained(home)
    return home


def pictures(home: Path, captions: dict[str, str], *, size: int = 8, is_listed: bool = False) -> Path:
    """A folder of pictures, one colour each, with captions beside them or in one list."""
    home.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (name, caption) in enumerate(captions.items()):
        file = home / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((size, size, 3), (37 * number) % 256, np.uint8)).save(file)
        if is_listed:
            lines.append(json.dumps({"file_name": name, "text": caption}))
        else:
            file.with_suffix(".txt").write_text(caption, encoding="utf-8")
    if is_listed:
        (home / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return home
