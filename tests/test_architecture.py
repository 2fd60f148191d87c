"""The rules of the code's structure, kept by reading the code."""

import ast
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

# A file may import only what stands before it.
ORDER = [
    "config",
    "recipes",
    "storage",
    "shards",
    "timing",
    "packets",
    "cutting",
    "opening",
    "video",
    "prepare",
    "labels",
    "simulation",
    "datasets",
    "sampling",
    "state_cache",
    "clips",
    "layers",
    "encoder",
    "latent_action",
    "fine_tune",
    "world_model",
    "decoder",
    "controller",
    "objective",
    "optimizer",
    "checkpoint",
    "clip_log",
    "run_folder",
    "batches",
    "train",
    "population",
    "evaluation",
    "planning",
    "report",
    "inspection",
    "cluster",
]
CLUSTER_ORDER = [
    "session",
    "filesystem",
    "submit",
    "index",
    "prepare",
    "dataset",
    "decode",
    "ingest",
    "fit",
    "encode",
    "evaluate",
    "plan",
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


def test_imports_go_downward() -> None:
    modules = {name_of(path) for path in LAWM} - {"lawm"}
    assert {name.split(".")[1] for name in modules} <= set(ORDER), "a new file needs its place in ORDER"
    assert {n.split(".")[2] for n in modules if n.startswith("lawm.cluster.")} <= set(CLUSTER_ORDER)
    wrong = []
    for path in LAWM:
        own = name_of(path).split(".")
        for module, line in imports(path):
            parts = module.split(".")
            if parts[0] == "jobs":
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
            if parts[0] != "lawm" or len(parts) < 2 or parts[1] not in ORDER or own == ["lawm"]:
                continue
            here, there = ORDER.index(own[1]), ORDER.index(parts[1])
            if own[1] == parts[1] == "cluster" and len(parts) > 2 and parts[2] in CLUSTER_ORDER and len(own) > 2:
                here, there = CLUSTER_ORDER.index(own[2]), CLUSTER_ORDER.index(parts[2])
                same_file = own[2] == parts[2]
            else:
                same_file = own[1] == parts[1]
            if there > here or (there == here and not same_file):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong


def config_fields() -> dict[str, list[str]]:
    """Field name -> the config classes that have it."""
    found: dict[str, list[str]] = {}
    for cls in vars(config).values():
        if isinstance(cls, type) and issubclass(cls, BaseModel) and cls.__module__ == "lawm.config":
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
    read = set().union(*(names_read(path) for path in [*LAWM, *JOBS] if name_of(path) != "lawm.config"))
    # Read in config.py itself, or for the user alone.
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
        "import lawm.planning, lawm.train, lawm.objective, lawm.evaluation.capacity, lawm.evaluation.leakage\n"
        "import lawm.evaluation.cycle, lawm.evaluation.control\n"
        "try:\n    import lawm.video\nexcept ImportError: print('blocked')\n"
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
    script = "import sys, lawm.cluster.decode, lawm.video; print({'torch', 'timm', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize("word", ["TODO", "FIXME", "XXX"])
def test_nothing_is_left_undone(word: str) -> None:
    assert not [str(p) for p in [*LAWM, *JOBS] if word in p.read_text(encoding="utf-8")]
