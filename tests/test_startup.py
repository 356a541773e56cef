"""Programs import what they use."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"torchmetrics", "transformers", "scipy", "sklearn", "datasets", "matplotlib", "diffusers", "torchvision"}
PROGRAMS = {
    "maskgen.pipelines.load": HEAVY | {"accelerate", "torch._dynamo"},
    "maskgen.sample.program": HEAVY | {"accelerate", "torch._dynamo"},
    "maskgen.sample.compare": HEAVY | {"accelerate", "torch._dynamo"},
    "maskgen.train.program": HEAVY,
}


def test_importing_a_program_does_not_import_what_only_some_commands_need() -> None:
    """One process imports them in this order, and looks after each."""
    lines = [
        f"import {one}; print('{one}', *sorted({unwanted!r} & set(sys.modules)))" for one, unwanted in PROGRAMS.items()
    ]
    code = "; ".join(["import sys", *lines])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(PROGRAMS)
