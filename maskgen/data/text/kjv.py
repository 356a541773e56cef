"""The King James Bible, as Debian prints it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache

from maskgen.core.errors import first_line
from maskgen.data.base import DATASETS, DataError, TextSource

_VERSE = re.compile(r"^[1-3]?[A-Za-z]+\d+:\d+ ", re.MULTILINE)


@DATASETS.register("kjv")
class KingJames(TextSource):
    """The King James Bible as Debian's program `bible` (package bible-kjv) prints it.

    4,137,850 characters, 63 different ones: letters (no capital X), newline, space and ``!"'(),-.:;?``. 31,102 verses
    in the order of the books, one a line, without the reference that the program puts before each. Books and chapters
    have no headings.
    """

    name = "kjv"
    is_one_text = True

    def _size(self) -> int:
        return len(_king_james())

    def _part(self, first: int, last: int) -> Iterator[str]:
        yield _king_james()[first:last]


def _king_james() -> str:
    program = shutil.which("bible")
    if program is None:
        raise DataError("the data set kjv is printed by the program `bible`, which is not here: apt install bible-kjv")
    return _verses(program)


@cache
def _verses(program: str) -> str:
    # -f turns formatting off. The program looks for its text in the working directory first: not in the user's.
    command = [program, "-f", "Gen1:1-Rev22:21"]
    try:
        printed = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, cwd="/").stdout
        text = printed.decode("ascii")
    except (OSError, subprocess.CalledProcessError, UnicodeDecodeError) as error:
        raise DataError(
            f"{program} did not print the Bible: {first_line(error)}; apt install --reinstall bible-kjv"
        ) from None
    verses, n_references = _VERSE.subn("", text)
    if not n_references or n_references != len(text.splitlines()):
        raise DataError(f"{program} prints other lines than `Ge1:1 In the ...`; kjv needs the one of bible-kjv")
    return verses
