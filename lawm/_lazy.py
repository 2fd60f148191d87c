"""A room's public names, imported when they are first used: whoever asks for one waits for nothing else of the room."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def public_names(package: str, init: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """(`__getattr__`, `__dir__`, `__all__`) of a package, by the stub beside its `__init__.py` (PEP 562).

    The stub's lines `from lawm.room.file import a as a` say what the package hands out, to type checkers and here.
    `init`: the package's `__file__`.
    """
    stub = ast.parse(Path(init).with_suffix(".pyi").read_text(encoding="utf-8"))
    where = {
        alias.asname or alias.name: (str(node.module), alias.name)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def __getattr__(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no public name {name!r}")
        module, attribute = where[name]
        # `from lawm.room import file` hands out the file itself.
        if module == package:
            found: Any = import_module(f"{module}.{attribute}")
        else:
            found = getattr(import_module(module), attribute)
        setattr(sys.modules[package], name, found)
        return found

    return __getattr__, lambda: sorted(where), sorted(where)
