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
    for program, unwanted in PROGRAMS.items():
        code = f"import sys, {program}; print(*sorted({unwanted!r} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [], program
