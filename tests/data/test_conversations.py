"""Prompts and answers of a .jsonl as rows of tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from maskgen.data.base import DATASETS, DataError
from maskgen.data.text.answers import answer_data
from maskgen.data.text.conversations import Conversations, Exchange, read_exchanges
from maskgen.tokenizers.text.learned import characters, utf8_bytes
from maskgen.tokenizers.text.pretrained import huggingface
from maskgen.tokenizers.text.tokenizer import TextTokenizer
from tests.chatting import write_tokenizer

PAIRS = [{"prompt": f"{n} + 1 = ", "response": str(n + 1)} for n in range(8, 12)]
TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "the fox"},
    {"role": "user", "content": "and"},
    {"role": "assistant", "content": "the dog"},
]
WHOLE = {"validation_fraction": 0, "test_fraction": 0}


def conversations(folder: Path, *lines: Any, **keys: Any) -> Conversations:
    file = folder / "some.jsonl"
    file.write_text("\n\n".join(json.dumps(line) for line in lines))
    source = DATASETS.build({"type": "conversations", "path": str(file), **WHOLE, **keys})
    assert isinstance(source, Conversations)
    return source


def ended_bytes() -> TextTokenizer:
    return utf8_bytes(eos=True).stopping_at_eos()


def test_a_row_is_prompt_answer_and_the_token_that_ends_it(tmp_path: Path) -> None:
    tokenizer = ended_bytes()
    data = answer_data(conversations(tmp_path, *PAIRS), "train", tokenizer)
    tokens, n_prompt = data.__getitems__(range(4))
    assert tokens.shape == (4, len("11 + 1 = 12") + 1)
    for row, n, pair in zip(tokens, n_prompt.tolist(), PAIRS, strict=True):
        assert tokenizer.decode(row[:n]) == pair["prompt"]
        answer = tokenizer.encode(pair["response"])
        assert torch.equal(row[n : n + len(answer)], answer)
        assert (row[n + len(answer) :] == tokenizer.eos).all()
        assert row[-1] == tokenizer.eos
    assert tokenizer.eos in tokenizer.specials.stop


def test_rows_are_as_long_as_the_longest_read_with_them_or_all_of_one_length(tmp_path: Path) -> None:
    data = answer_data(conversations(tmp_path, *PAIRS), "train", ended_bytes())
    assert data.__getitems__([0])[0].shape[1] < data.__getitems__([0, 3])[0].shape[1]
    assert torch.equal(data[-1][0], data.__getitems__([3])[0][0])
    whole = answer_data(conversations(tmp_path, *PAIRS, padding="row", length=20), "train", ended_bytes())
    assert whole.__getitems__([0])[0].shape == (1, 20)


def test_rows_that_are_too_long_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = conversations(tmp_path, *PAIRS, {"prompt": "?", "response": "x" * 50}, length=20)
    assert len(answer_data(source, "train", ended_bytes())) == 4
    assert "1 rows are longer than data.length 20" in caplog.text


def test_a_conversation_has_a_row_for_each_turn_of_the_assistant() -> None:
    first, second = read_exchanges(json.dumps({"messages": TURNS}), "here")
    assert first == Exchange(tuple(TURNS[:2]), "the fox")
    assert second == Exchange(tuple(TURNS[:4]), "the dog")


def test_prompts_have_the_layout_of_the_chat_template_and_answers_its_end_of_turn(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = huggingface(str(tmp_path), eos="<|end|>", specials=True).stopping_at_eos()
    data = answer_data(conversations(tmp_path, {"messages": TURNS}, PAIRS[0]), "train", tokenizer)
    tokens, n_prompt = data.__getitems__(range(3))
    names = tokenizer.token_names()
    for row, n, turns in zip(tokens, n_prompt.tolist(), (TURNS[:2], TURNS[:4]), strict=False):
        assert torch.equal(row[:n], tokenizer.encode_chat(turns))
    row, n = tokens[1], int(n_prompt[1])
    answer = tokenizer.encode_after("the dog")
    assert torch.equal(row[n : n + len(answer)], answer)
    assert names[int(row[n + len(answer)])] == "<|turn|>"
    assert torch.equal(tokens[2][: n_prompt[2]], tokenizer.encode_chat([{"role": "user", "content": "8 + 1 = "}]))


def test_messages_without_a_chat_template_need_a_separator(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.separator"):
        answer_data(conversations(tmp_path, {"messages": TURNS}), "train", ended_bytes())
    tokenizer = ended_bytes()
    data = answer_data(conversations(tmp_path, {"messages": TURNS}, separator="\n"), "train", tokenizer)
    tokens, n_prompt = data[0]
    assert tokenizer.decode(tokens[:n_prompt]) == "be brief\nhello\n"


def test_splits_are_parts_of_the_lines_and_the_tokenizer_learns_from_training_alone(tmp_path: Path) -> None:
    source = conversations(tmp_path, *PAIRS, validation_fraction=0.25, test_fraction=0.25)
    assert [len(list(source.exchanges(split))) for split in ("train", "validation", "test")] == [2, 1, 1]
    assert list(source.documents("train")) == ["8 + 1 = 9", "9 + 1 = 10"]
    assert source.fingerprint("train") != source.fingerprint("test")
    assert source.report() == ["data some.jsonl: 2 train, 1 validation, 1 test answers"]


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    tokenizer = characters(lambda: iter(["0123456789 +="]))
    with pytest.raises(DataError, match=r"set tokenizer\.eos"):
        answer_data(conversations(tmp_path, *PAIRS), "train", tokenizer)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 7: not JSON"),
        ('{"prompt": "a"}', "needs texts prompt and response"),
        ('{"prompt": "a", "response": 3}', "needs texts prompt and response"),
        ("[1]", "needs texts prompt and response"),
        ('{"messages": [{"role": "user"}]}', "needs the texts role and content"),
        ('{"messages": "a"}', "needs the texts role and content"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "need a turn of the assistant"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "another one before it"),
    ],
)
def test_a_line_that_is_no_conversation_is_named(line: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_exchanges(line, "some.jsonl, line 7")


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    for path in ("", str(tmp_path), str(tmp_path / "none.jsonl")):
        with pytest.raises(DataError, match="no file"):
            Conversations(path)
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match="there is nothing in it"):
        list(Conversations(str(tmp_path / "empty.jsonl")).exchanges("train"))
