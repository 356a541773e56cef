"""`python -m tests.scripts FOLDER FILE ...`: run Python files one after the other in a working directory."""

from __future__ import annotations

import os
import runpy
import sys

if __name__ == "__main__":
    os.chdir(sys.argv[1])
    for path in sys.argv[2:]:
        print(path, flush=True)
        runpy.run_path(path)
