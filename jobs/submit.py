"""Send a job to a Ray cluster and follow its log: lawm submit JOB ...

The checkout is uploaded (without .git, .venv, runs and what .gitignore names) and `python -m jobs.JOB ...` runs on the
cluster's head. What is not submit's own, `--recipe` and `--set` among it, goes to the job. Paths in it are the
cluster's: give data as s3:// or as a folder that all nodes share. Exit code: the job's own.
"""

import argparse
import os
import shlex
import sys

import yaml

from jobs._cli import Parser, base_parser, job_module, job_names, resolve_config, run_job
from lawm.config import LawmError
from lawm.s3 import named_endpoint


@run_job
def main(argv: list[str] | None = None) -> int:
    args, rest = _parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    jobs = {name: line for name, line in job_names().items() if name != "submit"}
    if not rest or rest[0].startswith("-"):
        raise LawmError(f"which job? Expected `lawm submit JOB ...` with one of {', '.join(jobs)}")
    name, *job_args = rest
    name = name.replace("-", "_")
    if name not in jobs:
        raise LawmError(f"{name}: no such job. There are: {', '.join(jobs)}")
    known = base_parser(name, "", default_recipe="").parse_known_args(job_args)[0]
    if known.recipe:
        # A wrong field shows here, not after the upload. (Without a recipe only the job knows what it starts from.)
        resolve_config(known)

    from lawm.cluster import submit

    working_dir = args.working_dir or submit.checkout()
    if working_dir is None:
        raise LawmError(
            "this lawm does not lie in a checkout: name one by --working-dir, the cluster runs a copy of it"
        )
    module = job_module(name)
    if not os.path.isfile(os.path.join(working_dir, *module.split(".")) + ".py"):
        raise LawmError(f"{working_dir}: holds no {module.replace('.', '/')}.py. Expected a checkout of lawm")
    submission = submit.Submission(
        entrypoint=shlex.join([args.python, "-m", module, *job_args]),
        working_dir=os.path.abspath(working_dir),
        address=args.address or submit.default_address(),
        env=_same_server() | _environment(args.env_var),
    )
    if args.dry_run:
        said = {"address": submission.address, "entrypoint": submission.entrypoint}
        print(yaml.safe_dump(said | {"runtime_env": submission.runtime_env()}, sort_keys=False, width=110), end="")
        return 0
    job, status = submit.submit(submission, wait=not args.no_wait)
    where = f"--address {submission.address}"
    if args.no_wait:
        print(f"submitted {job}. Its log: ray job logs --follow {where} {job}    to end it: ray job stop {where} {job}")
    else:
        print(f"job {job} ended with exit status {status}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lawm submit",
        usage="lawm submit [options] JOB [the job's arguments, --recipe and --set among them]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="A cluster that is guarded by a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to what "
        "`ray get-auth-token` prints there.",
    )
    parser.add_argument("--address", help="the dashboard's URL (default: RAY_ADDRESS, or http://127.0.0.1:8265)")
    parser.add_argument("--working-dir", metavar="FOLDER", help="the folder to upload (default: this checkout)")
    parser.add_argument("--no-wait", action="store_true", help="return as soon as the job is accepted")
    parser.add_argument("--python", default="python", help="the cluster's Python (default: python)")
    parser.add_argument(
        "--env-var",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="set in the job (no value: as it is here)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted; submit nothing")
    return parser


def _same_server() -> dict[str, str]:
    """The S3 server that is named here is the job's too: its data must not go to another one."""
    url = named_endpoint()
    return {"AWS_ENDPOINT_URL_S3": url} if url else {}


def _environment(settings: list[str]) -> dict[str, str]:
    env = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals and name not in os.environ:
            raise LawmError(
                f"--env-var {name}: not set here. Expected NAME=VALUE, or the name of a variable that is set"
            )
        env[name] = value if equals else os.environ[name]
    return env


if __name__ == "__main__":
    sys.exit(main())
