"""What every job shares: its arguments, its dry run, and how its errors reach the user."""

import argparse
import ast
import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, Protocol

import yaml
from rich.console import Console

from lawm import storage
from lawm.config import Config, ConfigError, LawmError, override
from lawm.recipes import RECIPES, recipe

DEFAULT_RECIPE = "demo"


# ---------------------------------------------------------------- arguments
class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        raise LawmError(f"{message}. `{self.prog} --help` lists the arguments")


class Examples(argparse.HelpFormatter):
    """Wraps the paragraphs of a description and leaves its examples, `lawm ...` to copy, a line each."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = []
        for part in text.strip().split("\n\n"):
            lines = [line.strip() for line in part.splitlines()]
            if all(line.startswith("lawm ") for line in lines):
                parts.append("\n".join(f"    {line}" for line in lines))
            else:
                parts.append(super()._fill_text(part, width, indent))
        return "\n\n".join(parts)


def base_parser(name: str, description: str, default_recipe: str | None = DEFAULT_RECIPE) -> argparse.ArgumentParser:
    """A parser for `lawm NAME` with what every job takes: --recipe, --set, --dry-run."""
    parser = Parser(
        prog=f"lawm {name}",
        description=description,
        allow_abbrev=False,
        formatter_class=Examples,
        epilog="Exit code: 0 done, 2 something to put right (said in one line), 130 interrupted. "
        "LAWM_VERBOSE=1 shows Ray's log.",
    )
    group = parser.add_argument_group("configuration")
    group.add_argument(
        "--recipe",
        default=default_recipe,
        metavar="NAME",
        help=f"one of {', '.join(RECIPES)} (default: {default_recipe or 'the config of the checkpoint'})",
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        dest="overrides",
        help="change one field of the recipe, as in --set train.steps=100 (repeatable; --dry-run shows all fields)",
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved config, the resources and the number of clips; run nothing",
    )
    return parser


def resolve_config(args: argparse.Namespace, base: Config | None = None) -> Config:
    """The recipe (or `base`, for jobs that start from a checkpoint) with every --set applied, in order.

    Raises ConfigError.
    """
    return anchored(apply_settings(base if base is not None else recipe(args.recipe), args.overrides))


def anchored(config: Config) -> Config:
    """The config with local paths made absolute: Ray's workers, and later commands, run elsewhere."""
    found = {f"data.{name}": getattr(config.data, name) for name in ("index", "cache", "labels")}
    weights = getattr(config.encoder, "weights", None)
    if weights is not None and weights not in ("pretrained", "random") and not weights.startswith("package:"):
        found["encoder.weights"] = weights
    for path, uri in found.items():
        if uri and uri != storage.absolute(uri):
            config = override(config, path, storage.absolute(uri))
    return config


def split_settings(text: str) -> list[str]:
    """'A=1 B.C={"x": 2}' -> ['A=1', 'B.C={"x": 2}']: several settings in one argument."""
    return re.split(r"\s+(?=[A-Za-z_][\w.]*=)", text.strip())


def apply_settings(config: Config, settings: Iterable[str], option: str = "--set") -> Config:
    """The config with each FIELD=VALUE applied, in order. Raises ConfigError."""
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"{option} {setting}: expected FIELD=VALUE, as in {option} train.steps=100")
        config = override(config, path.strip(), value.strip())
        if path.strip() == "plan.preset":
            from lawm.planning import chosen

            config = config.model_copy(update={"plan": chosen(config.plan)})
    return config


def describe(config: Config, resources: Iterable[Any], clips: int | str | None, **more: Any) -> None:
    """Prints, as YAML on stdout, what a job would do: config, resources, clips and whatever else it names."""
    said: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "resources": [str(need) for need in resources],
        "clips": clips if clips is not None else "unknown until the videos are indexed",
    }
    sys.stdout.write(yaml.safe_dump(said | more, sort_keys=False, allow_unicode=True, width=110))


# ---------------------------------------------------------------- errors
class Job(Protocol):
    def __call__(self, argv: list[str] | None = None) -> int: ...


def run_job(main_fn: Callable[..., int | None]) -> Job:
    """Decorates a job's `main(argv=None)` so that it returns its exit code and says what went wrong in one line.

    LawmError, wherever it was raised (Ray tasks, training workers), and refusals by the system or by Ray
    give 2; an interrupt gives 130. Any other exception is a bug and keeps its traceback.
    """

    @functools.wraps(main_fn)
    def main(argv: list[str] | None = None) -> int:
        try:
            return main_fn(argv) or 0
        except SystemExit as stop:  # argparse, after --help
            return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
        except KeyboardInterrupt:
            _say("interrupted. Run the same command again to go on")
            return 130
        except BrokenPipeError:
            # The reader of our output has gone (`lawm ... | head`); what is still buffered has nowhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            line = one_line(error)
            if line is None:
                raise
            _say(line)
            return 2

    return main


_SYSTEM = {
    errno.ENOSPC: "the disk is full. Free some space, or write elsewhere",
    errno.EDQUOT: "the disk quota is used up. Free some space, or write elsewhere",
    errno.EACCES: "permission denied. Choose another place, or change its permissions",
    errno.EPERM: "not permitted. Choose another place, or change its permissions",
    errno.EROFS: "the file system is read-only. Write elsewhere",
    errno.ENOENT: "no such file or folder. Check the path",
    errno.EISDIR: "is a folder, where a file was expected",
    errno.ENOTDIR: "is a file, where a folder was expected",
    errno.ENAMETOOLONG: "the name is too long for the file system",
    errno.EMFILE: "too many open files. Raise the limit: ulimit -n 8192",
}


def one_line(error: BaseException) -> str | None:
    """What to tell the user, or None when the error is a bug."""
    said: str | None = None
    if "ray" in sys.modules:
        from lawm.cluster.session import explain

        said = explain(error)
    elif isinstance(error, LawmError):
        said = str(error)
    if said is None and isinstance(error, OSError) and error.errno in _SYSTEM:
        where = error.filename if isinstance(error.filename, str) else error.filename2
        said = f"{where or 'cannot read or write'}: {_SYSTEM[error.errno]}"
    return None if said is None else " ".join(said.split())


def output_width() -> int | None:
    """Columns of what is printed: the terminal's (None), or off a terminal COLUMNS and else 120."""
    said = os.environ.get("COLUMNS", "")
    return None if sys.stdout.isatty() else int(said) if said.isdecimal() and int(said) > 0 else 120


def shown(text: str) -> str:
    """Text for a terminal, on one line: what would move the cursor, colour or turn it is spelt out (`\\x1b`)."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def say(text: str) -> None:
    """A line on stdout as it is, never wrapped: names can be copied from it."""
    print(shown(text), flush=True)


def _say(line: str) -> None:
    """One line in red on stderr (plain where that is no terminal); never wrapped, so that it can be searched for."""
    Console(stderr=True, soft_wrap=True).print(
        shown(f"lawm: {line}"), style="bold red", markup=False, emoji=False, highlight=False
    )


# ---------------------------------------------------------------- the list of jobs
def job_module(name: str) -> str:
    """The module of the job of that name."""
    hides = (Path(__file__).parent / f"{name}_.py").exists()
    return f"jobs.{name}_" if hides else f"jobs.{name}"


def job_names() -> dict[str, str]:
    """Every job and the first line of its docstring, read without importing it. A file whose name would hide a
    module of the standard library ends in an underscore."""
    folder = Path(__file__).parent
    found = {}
    for path in sorted(folder.glob("*.py")):
        if not path.name.startswith("_"):
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[path.stem.rstrip("_")] = doc.partition("\n")[0]
    return found
