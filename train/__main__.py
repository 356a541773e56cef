"""`python -m maskgen.train`, for torchrun and `accelerate launch -m`: the same as `maskgen train`."""

import os
import sys

from maskgen.cli.commands import main

code: int | str | None = 0
try:
    main("train")
except SystemExit as stop:
    code = stop.code
    if isinstance(code, str):  # a message, which the interpreter would print
        print(code, file=sys.stderr)
if int(os.environ.get("WORLD_SIZE", "1")) > 1:
    # All files are closed. Threads of gloo may still run, and a process that exits in the usual way is then
    # aborted at times ("terminate called without an active exception"), which torchrun takes for a failed run.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
sys.exit(code)
