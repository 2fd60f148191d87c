"""What the benchmarks share: the machine, the versions, the spread of a ratio, and the one JSON line at the end."""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def parser(doc: str | None) -> argparse.ArgumentParser:
    """An argument parser with `--quick` and the first paragraph of a module's docstring."""
    made = argparse.ArgumentParser(description=(doc or "").split("\n\n")[0])
    made.add_argument("--quick", action="store_true", help="under 50 s on two cores; wider spreads")
    return made


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GiB, system; the GPU if torch is loaded and sees one."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = {"processor": processor, "cores": cores, "memory_gib": round(memory, 1), "system": platform.platform()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(0)
    return found


def versions(*packages: str) -> dict[str, str | None]:
    """Version of each distribution (None: not installed), and Python's."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest of repeated measurements, to four digits."""
    return {
        "median": float(f"{statistics.median(values):.4g}"),
        "low": float(f"{min(values):.4g}"),
        "high": float(f"{max(values):.4g}"),
    }


def finish(
    name: str, figures: dict[str, Any], packages: Sequence[str], machine_used: dict[str, Any] | None = None
) -> None:
    """Prints the last line: one JSON object with the benchmark's figures, the machine and the versions.

    `machine_used`: an earlier answer of `machine`, where the benchmark has since kept itself to one core.
    """
    line = {"benchmark": name, **figures, "machine": machine_used or machine(), "versions": versions(*packages)}
    print(json.dumps(line), flush=True)
