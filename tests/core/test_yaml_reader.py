"""YAML from outside: plain values, bounded, and one kind of error."""

from __future__ import annotations

import time

import pytest

from maskgen.core.yaml_reader import MOST_CHARACTERS, YamlError, read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12))
BAD = {
    "more than 10,000 values": [BOMB, MERGED, "[" + "1," * 30_000 + "]"],
    "levels deep": ["[" * 100_000, "{a: " * 60, "- " * 200],
    "contains itself": ["a: &a [*a]", "&a {b: *a}"],
    "characters of YAML": ["x" * (MOST_CHARACTERS + 1)],
    "cannot be read": ["2024-13-45", "9" * 5000, "!!bool x", "!!int x", "!!timestamp x", "!!float x"],
    ".": ["!!python/object/apply:os.getcwd []", "a: b: c", "--- 1\n--- 2", "\x1b", "[1", "? [a]\n: b", "%YAML 9", "*a"],
}


def test_what_is_no_yaml_or_too_much_of_it_is_one_line_and_takes_no_time() -> None:
    for message, texts in BAD.items():
        for text in texts:
            start = time.process_time()
            with pytest.raises(YamlError, match=message) as error:
                read_yaml(text)
            assert "\n" not in str(error.value)
            assert time.process_time() - start < 5, text[:20]


def test_plain_values_and_aliases_are_read() -> None:
    assert read_yaml("x: &x {p: 1}\ny: {<<: *x, q: [yes, null, 1.5, 'no']}\nz: *x") == {
        "x": {"p": 1},
        "y": {"p": 1, "q": [True, None, 1.5, "no"]},
        "z": {"p": 1},
    }
