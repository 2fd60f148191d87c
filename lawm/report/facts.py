"""Where and how a run took place."""

import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path

from lawm import __version__


def machine() -> dict[str, str]:
    """Where a run took place: system, processor, cores, memory, accelerators, and the versions that matter."""
    facts = {"system": platform.platform(), "processor": platform.processor() or platform.machine()}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        facts["processor"] = names[0] if names else facts["processor"]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts["cores"] = str(usable)
    facts["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
    torch = sys.modules.get("torch")  # asking must not cost an import of torch
    if torch is not None:
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        facts["GPU"] = ", ".join(gpus) or "none"
    facts["python"] = platform.python_version()
    facts["lawm"] = __version__
    for package in ("torch", "ray", "timm", "av", "numpy", "pyarrow", "optuna"):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def command_line() -> str:
    """The command that this process was started with, as it could be typed again."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    started = ["python", "-m", spec.name.removesuffix(".__main__")] if spec else sys.argv[:1]
    return shlex.join([*started, *sys.argv[1:]])
