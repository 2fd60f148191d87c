"""Mutated videos, tars and tables in a process of their own: no crash, no hang, no other error than a reason."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def fuzzed(seconds: int, seed: int) -> dict[str, object]:
    asked = [sys.executable, str(Path(__file__).parents[1] / "fuzz.py"), str(seconds), str(seed)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=seconds + 500)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    return dict(found)


def test_for_a_moment() -> None:
    found = fuzzed(6, 1)
    assert found["files"] > 10  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_for_ten_minutes() -> None:
    """Ten minutes, or what FUZZ_SECONDS says."""
    seconds = int(os.environ.get("FUZZ_SECONDS", "600"))
    found = fuzzed(seconds, 1000)
    assert found["files"] > seconds  # type: ignore[operator]
    assert found["peak_growth_mib"] < 600  # type: ignore[operator]
