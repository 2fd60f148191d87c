"""Ray Jobs: sends a command to a cluster, follows its log, returns its exit status.

Ray guards a cluster by a token when RAY_AUTH_MODE=token (the default of a local `ray start --head` once a token
exists). A client then needs the same one, in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.
"""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from lawm.cluster.session import explain, listens, verbose
from lawm.config import LawmError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
EXCLUDES = [".git", ".venv", "runs", "__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache", "*.egg-info"]
"""Left out of the upload, besides what .gitignore names (Ray reads it)."""
_ADDRESS_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


@dataclass(frozen=True)
class Submission:
    """What is sent: a shell command, the folder that it runs in (a copy of `working_dir`), its environment."""

    entrypoint: str
    working_dir: str
    address: str
    env: Mapping[str, str] = field(default_factory=dict)

    def runtime_env(self) -> dict[str, Any]:
        # Unbuffered, so that the log can be followed line by line.
        return {
            "working_dir": self.working_dir,
            "excludes": EXCLUDES,
            "env_vars": {
                "PYTHONUNBUFFERED": "1",
                "RAY_USAGE_STATS_ENABLED": "0",
                **self.env,
            },
        }


def checkout() -> str | None:
    """The folder of the checkout that this package runs from; None when it was installed elsewhere."""
    root = Path(__file__).resolve().parents[2]
    return str(root) if (root / "pyproject.toml").is_file() and (root / "jobs").is_dir() else None


def default_address() -> str:
    """RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or the dashboard's usual place on this machine."""
    return os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or DEFAULT_ADDRESS


def submit(submission: Submission, wait: bool = True, out: TextIO | None = None) -> tuple[str, int]:
    """Submits and, if `wait`, copies the job's log to `out` (stdout) until it ends.

    Returns (submission id, exit status): the entrypoint's own status, 1 when it was stopped or could not be
    started, 0 when not waited for. Raises LawmError for no cluster, a wrong token, a folder too large.
    """
    out = out or sys.stdout
    with _client(submission.address) as client:
        with _one_line_errors(submission.address):
            job = client.submit_job(entrypoint=submission.entrypoint, runtime_env=submission.runtime_env())
        if not wait:
            return job, 0
        with _one_line_errors(submission.address):
            return job, follow(client, job, out)


def follow(client: JobSubmissionClient, job: str, out: TextIO) -> int:
    """Copies the job's log to `out` until the job has ended; returns its exit status. Survives a lost connection."""
    written = 0
    failures = 0
    while True:
        try:
            written += asyncio.run(_tail(client, job, out, skip=written))
            failures = 0
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            if isinstance(error, AuthenticationError):
                raise
            failures += 1
            if failures > 5:
                raise ConnectionError(f"lost the connection to job {job}, which may go on: {error}") from error
            time.sleep(failures)
        try:
            info = client.get_job_info(job)
        except (RuntimeError, OSError):
            if failures > 5:
                raise
            failures += 1
            time.sleep(failures)
            continue
        if info.status.is_terminal():
            break
        time.sleep(0.5)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.FAILED and info.driver_exit_code is None and info.message:
        out.write(f"{info.message.strip()}\n")
    return info.driver_exit_code or 1


async def _tail(client: JobSubmissionClient, job: str, out: TextIO, skip: int) -> int:
    """Writes the log from character `skip` on until the server ends the stream; returns how many were written."""
    seen = written = 0
    async for text in client.tail_job_logs(job):
        fresh = text[max(0, skip - seen) :]
        seen += len(text)
        if fresh:
            out.write(fresh)
            out.flush()
            written += len(fresh)
    return written


@contextmanager
def _client(address: str) -> Iterator[JobSubmissionClient]:
    """A client of `address` and of no other: Ray lets RAY_ADDRESS take precedence over the argument."""
    if not verbose():
        # Ray's own, on what it packs and when the stream of the log closes. Its modules set their levels one by one.
        for name in [name for name in logging.root.manager.loggerDict if name == "ray" or name.startswith("ray.")]:
            logging.getLogger(name).setLevel(logging.ERROR)
    saved = {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
    try:
        with _one_line_errors(address):
            if address.startswith(("http://", "https://")):
                parts = urlsplit(address)
                port = parts.port or (443 if parts.scheme == "https" else 80)
                if not parts.hostname or not listens(parts.hostname, port):
                    raise ConnectionError(f"nothing listens on {parts.hostname}:{port}")
            client = JobSubmissionClient(address)
        yield client
    finally:
        os.environ.update(saved)


@contextmanager
def _one_line_errors(address: str) -> Iterator[None]:
    try:
        yield
    except AuthenticationError as error:
        raise LawmError(f"{address}: {explain(error)}") from error
    except (ConnectionError, requests.exceptions.RequestException, aiohttp.ClientError, TimeoutError) as error:
        raise LawmError(
            f"{address}: cannot reach a Ray cluster ({_first_line(error)}). Expected the dashboard's URL, as "
            "`ray start --head` or `ray dashboard cluster.yaml` prints it; give it by --address or RAY_ADDRESS"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise LawmError(f"{address}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
