"""`lawm JOB ...`: runs jobs/JOB.py; without a job, lists them."""

import difflib
import importlib
import sys

from rich.console import Console
from rich.table import Table

from jobs._cli import job_module, job_names, output_width, run_job
from lawm import __version__
from lawm.config import LawmError


@run_job
def main(argv: list[str] | None = None) -> int:
    args = sys.argv[1:] if argv is None else list(argv)
    jobs = job_names()
    if not args or args[0] in ("-h", "--help", "help"):
        _list(jobs)
        return 0
    if args[0] in ("-V", "--version"):
        print(f"lawm {__version__}")
        return 0
    name = args[0].replace("-", "_")
    if name not in jobs:
        close = difflib.get_close_matches(name, jobs, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise LawmError(f"{args[0]}: no such job.{hint} There are: {', '.join(jobs)}")
    job = importlib.import_module(job_module(name))
    return int(job.main(args[1:]))


def _list(jobs: dict[str, str]) -> None:
    console = Console(width=output_width())
    console.print(
        "Latent action world models on Ray.   [bold]lawm JOB ...[/]   `lawm JOB --help` says what a job takes.\n"
    )
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, line in jobs.items():
        table.add_row(f"[bold]{name}[/]", line)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
