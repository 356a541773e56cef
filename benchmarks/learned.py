"""Tests of learned outcomes under all instruction sets and thread counts: their margins must not depend on rounding.

`python benchmarks/learned.py [pytest arguments]` runs the tests marked `learned` once per ATEN_CPU_CAPABILITY (default,
avx2, avx512) and number of threads (1, 2), and prints a table of the outcomes. Exit code 1 if any run fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

CAPABILITIES = ("default", "avx2", "avx512")
THREADS = (1, 2)


def outcome(capability: str, threads: int, arguments: list[str]) -> tuple[bool, str]:
    """Whether the tests pass under a setting, and pytest's last line."""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "learned", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode == 0, "; ".join([done.stdout.strip().splitlines()[-1], *failed])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments = parser.parse_known_args()[1]
    results = []
    print(f"{'capability':12}{'threads':>8}{'seconds':>9}  outcome")
    for capability in CAPABILITIES:
        for threads in THREADS:
            start = time.perf_counter()
            passed, summary = outcome(capability, threads, arguments)
            print(f"{capability:12}{threads:8}{time.perf_counter() - start:9.0f}  {summary}", flush=True)
            results.append(passed)
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
