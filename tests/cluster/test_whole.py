"""A task that is cancelled while its process imports what it needs does not spoil the process for the next task."""

import subprocess
import sys

CANCELLED_WHILE_IMPORTING = """
import _thread, importlib.abc, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

class Cancel(importlib.abc.MetaPathFinder):  # as Ray does it, in the middle of a package's import
    def find_spec(self, name, path, target=None):
        if name == at and not asked:
            asked.append(name)
            _thread.interrupt_main()

asked, at = [], {at!r}
sys.meta_path.insert(0, Cancel())
try:
    import {module}
    sys.exit("not cancelled")
except KeyboardInterrupt:
    pass
import {module}
import av.error
print(asked, hasattr(av, "error"))
"""


def after_a_cancelled_import(module: str) -> str:
    script = CANCELLED_WHILE_IMPORTING.format(module=module, at="av.filter")
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120).stdout.strip()


def test_a_cancelled_import_of_a_decode_task_leaves_whole_packages() -> None:
    assert after_a_cancelled_import("lawm.cluster.decode") == "['av.filter'] True"


def test_without_the_guard_a_cancelled_import_leaves_half_a_package() -> None:
    """What is guarded against; when this fails, PyAV or Python have mended it."""
    assert after_a_cancelled_import("av") == "['av.filter'] False"
