"""Code and pages are in the field's words: networks are evaluated and get inputs, they are not asked and told."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIALECT = re.compile(
    r"\b(?:asks?|asked|wants?|wanted|told|tells|knows? (?:nothing )?of|knowing nothing|anew|into ours)\b"
    r"|\b[Tt]aken in turn\b|\bWho reads\b|\bOf each\.|\bprocessor seconds\b|\bquota=",
)
MOST = 24


def test_the_dialect_is_gone() -> None:
    files = [path for folder in ("maskgen", "train", "sample") for path in (ROOT / folder).rglob("*.py")]
    files += [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "configs").rglob("*.yaml")]
    found = Counter(
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for _ in DIALECT.findall(line)
    )
    assert found.total() <= MOST, "\n".join(found)


def test_the_pattern_finds_what_it_should() -> None:
    odd = ["the network is asked", "Who reads them.", "Of each.", "rows that are wanted", "made anew", "into ours"]
    assert all(DIALECT.search(text) for text in odd)
    assert not DIALECT.search("a masked token that the task needs")
