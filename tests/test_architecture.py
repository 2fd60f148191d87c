"""The rules of the code's structure, kept by reading the code."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from lawm import config

ROOT = Path(__file__).parent.parent
LAWM = sorted((ROOT / "lawm").rglob("*.py"))
JOBS = sorted((ROOT / "jobs").glob("*.py"))

# The rooms (and the files outside of them) in the order in which data flows: each imports only what stands before it.
ORDER = [
    "_lazy",
    "config",
    "recipes",
    "s3",
    "storage",
    "parquet",
    "video",
    "data",
    "model",
    "training",
    "simulation",
    "evaluation",
    "planning",
    "report",
    "reproduction",
    "cluster",
]
ROOMS = [room for room in ORDER if (ROOT / "lawm" / room).is_dir()]
CLUSTER_ORDER = [
    "whole",
    "machine",
    "errors",
    "session",
    "filesystem",
    "actors",
    "submit",
    "index",
    "prepare",
    "dataset",
    "decode",
    "ingest",
    "board",
    "fit",
    "encode",
    "latents",
    "parts",
    "evaluate",
    "plan",
    "simulate",
    "search_space",
    "search",
]


def name_of(path: Path) -> str:
    """lawm/cluster/fit.py -> lawm.cluster.fit"""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(module, line) of every import, wherever in the file it stands; `from a import b` gives a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield str(node.module), node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def test_only_cluster_imports_ray() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in [*LAWM, *JOBS]
        for module, line in imports(path)
        if module.split(".")[0] == "ray" and "cluster" not in path.relative_to(ROOT).parts
    ]
    assert not found


def private_names_of_ray(path: Path) -> list[str]:
    """Modules and attributes of ray that begin with an underscore."""
    found = [f"{line}: {m}" for m, line in imports(path) if m.split(".")[0] == "ray" and "._" in m]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and (said := ast.unparse(node)).startswith("ray.") and "._" in said:
            found.append(f"{node.lineno}: {said}")
    return found


def test_private_names_of_ray_stay_in_one_file(tmp_path: Path) -> None:
    """What may go with Ray's next version is found in one place."""
    (tmp_path / "a.py").write_text(
        "import ray\nfrom ray.train.v2._internal import x\nfrom ray import _raylet\nray._private.y\nray.z(ray.get)"
    )
    assert len(private_names_of_ray(tmp_path / "a.py")) >= 3
    others = [path for path in [*LAWM, *JOBS, *ROOT.glob("benchmarks/*.py")] if name_of(path) != "lawm.cluster.session"]
    assert not {str(path): found for path in others if (found := private_names_of_ray(path))}


def place(module: str) -> tuple[int, int]:
    """Where `lawm.room.file` stands; files of a room are in no order, save for those of cluster/."""
    parts = module.split(".")
    inner = (
        CLUSTER_ORDER.index(parts[2]) if parts[1] == "cluster" and len(parts) > 2 and parts[2] in CLUSTER_ORDER else -1
    )
    return ORDER.index(parts[1]), inner


def test_imports_go_downward() -> None:
    modules = {name_of(path) for path in LAWM} - {"lawm"}
    assert {name.split(".")[1] for name in modules} == set(ORDER), "a new room needs its place in ORDER"
    assert {n.split(".")[2] for n in modules if n.startswith("lawm.cluster.")} == set(CLUSTER_ORDER)
    wrong = []
    for path in LAWM:
        own = name_of(path)
        for module, line in imports(path):
            parts = module.split(".")
            if parts[0] == "jobs" or (
                parts[0] == "lawm"
                and len(parts) > 1
                and parts[1] in ORDER
                and own != "lawm"
                and place(module) > place(own)
            ):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other, directly or around a corner."""
    reach = {module: set(found) for module, found in graph.items()}
    for _ in graph:
        for module, found in reach.items():
            reach[module] = found.union(*(reach.get(other, set()) for other in found))
    return sorted(module for module, found in reach.items() if module in found)


def test_no_files_import_each_other() -> None:
    """Inside a room, too, imports go one way."""
    modules = {name_of(path): path for path in LAWM}
    graph = {
        name: {
            module for module, _ in imports(path) if module in modules and module != name and path.name != "__init__.py"
        }
        for name, path in modules.items()
    }
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circles(graph) == []


def test_rooms_import_each_others_public_names_only() -> None:
    """`from lawm.room import name`: what stands in which file of a room is the room's own affair. Files of cluster/ are
    jobs' entrances and named one by one."""
    wrong = []
    for path in [*LAWM, *JOBS, *sorted((ROOT / "benchmarks").glob("*.py"))]:
        own = name_of(path).split(".")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            parts = node.module.split(".")
            if parts[0] != "lawm" or len(parts) < 2 or parts[1] not in ROOMS or parts[1] == "cluster":
                continue
            inside = own[0] == "lawm" and own[1:2] == parts[1:2]
            if not inside and len(parts) > 2:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} imports from {node.module}, not from its room")
            if not inside:
                hands_out = importlib.import_module(".".join(parts[:2])).__all__
                wrong += [
                    f"{path.relative_to(ROOT)}:{node.lineno}: lawm.{parts[1]} does not hand out {alias.name}"
                    for alias in node.names
                    if alias.name not in hands_out
                ]
    assert not wrong


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "cluster"])
def test_a_room_says_what_it_is_for_and_hands_out_names_that_are_there(room: str) -> None:
    package = importlib.import_module(f"lawm.{room}")
    assert package.__doc__ and package.__all__ and package.__dir__() == package.__all__
    files = {path.stem for path in (ROOT / "lawm" / room).iterdir()}
    for name in package.__all__:
        found = getattr(package, name)
        # A file of that name would hide the public name as soon as it is imported.
        assert name not in files or getattr(found, "__name__", "") == f"lawm.{room}.{name}", name
    with pytest.raises(AttributeError, match="has no public name"):
        package.nothing  # noqa: B018


def config_fields() -> dict[str, list[str]]:
    """Field name -> the config classes that have it."""
    found: dict[str, list[str]] = {}
    for cls in (getattr(config, name) for name in config.__all__):
        if isinstance(cls, type) and issubclass(cls, BaseModel):
            for name in cls.model_fields:
                found.setdefault(name, []).append(cls.__name__)
    return found


def names_read(path: Path) -> set[str]:
    """Attributes that a file reads, and fields that its `match` patterns take out."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        elif isinstance(node, ast.MatchClass):
            found.update(node.kwd_attrs)
    return found


def test_every_config_field_is_read() -> None:
    outside = [path for path in [*LAWM, *JOBS] if not name_of(path).startswith("lawm.config")]
    read = set().union(*(names_read(path) for path in outside))
    # Read in config/ itself, or for the user alone.
    elsewhere = {"recipe"}
    unread = {name: classes for name, classes in config_fields().items() if name not in read | elsewhere}
    assert not unread


def test_the_check_for_unread_fields_can_fail(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x.written = 1\nprint(x.read)\nmatch x:\n    case T(taken=y):\n        pass\n")
    assert names_read(tmp_path / "a.py") == {"read", "taken"}


def test_no_file_is_over_600_lines() -> None:
    assert not {str(p): n for p in LAWM if (n := len(p.read_text(encoding="utf-8").splitlines())) > 600}


def test_every_job_takes_recipe_set_and_dry_run_and_reads_dry_run() -> None:
    """Their parsers come from base_parser, which gives all three; each job has to act on --dry-run itself."""
    for path in JOBS:
        if path.name.startswith("_"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        assert "base_parser" in called, path.name
        assert "dry_run" in names_read(path) or "run_training" in called, path.name
        assert ast.get_docstring(tree), path.name
    assert "dry_run" in names_read(ROOT / "jobs/_run.py")


BLOCKED = ("ray", "av", "lpips", "optuna")


def test_the_model_path_imports_without_ray_av_lpips_and_optuna(tmp_path: Path) -> None:
    """A machine that only trains and plans, from a state cache, has none of them."""
    script = (
        f"import sys\nfor name in {BLOCKED}: sys.modules[name] = None\n"
        "from lawm import evaluation, model, planning, training\n"
        "for room in (evaluation, model, planning, training):\n"
        "    for name in room.__all__: getattr(room, name)\n"
        "try:\n    from lawm.video import decode_clip\nexcept ImportError: print('blocked')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "blocked\n"), done.stderr


def test_config_imports_in_a_blink() -> None:
    """What --help and a mistyped field wait for."""
    heavy = {"torch", "ray", "pandas", "av", "timm", "boto3", "matplotlib", "pyarrow"}
    script = f"import sys, lawm.config; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr


def test_decode_workers_start_without_torch() -> None:
    """A decode node has a process a core; torch would cost each of them seconds and hundreds of MiB."""
    decoding = "lawm.cluster.decode, lawm.video.decode, lawm.data.clips"
    script = f"import sys, {decoding}; print({{'torch', 'timm', 'pandas', 'scipy'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize("word", ["TODO", "FIXME", "XXX"])
def test_nothing_is_left_undone(word: str) -> None:
    assert not [str(p) for p in [*LAWM, *JOBS] if word in p.read_text(encoding="utf-8")]


def test_paths_that_are_named_are_there() -> None:
    """Docs, docstrings and comments name files of this repository, as `lawm/data/index.py` does."""
    texts = [path for pattern in ("benchmarks/*.py", "docs/*.md", "*.md") for path in ROOT.glob(pattern)]
    gone = [
        f"{text.relative_to(ROOT)}: {named}"
        for text in [*LAWM, *JOBS, *texts]
        for named in re.findall(r"\b(?:lawm|tests|jobs|benchmarks)/[a-z0-9_/]+\.py\b", text.read_text("utf-8"))
        if not (ROOT / named).exists()
    ]
    assert not gone


def test_imports_that_the_docs_show_work() -> None:
    for text in [*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")]:
        for module, names in re.findall(r"from (lawm[.\w]*) import ([\w, ]+)", text.read_text(encoding="utf-8")):
            for name in names.split(","):
                assert hasattr(importlib.import_module(module), name.strip()), f"{text.name}: {module} has no {name}"


def test_files_of_tests_have_names_of_their_own() -> None:
    """pytest imports them by their names alone: of two of one name it collects neither."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    assert sorted(set(names)) == sorted(names)
