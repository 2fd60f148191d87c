"""What a user of the command line meets: help, exit codes, one line a mistake; `lawm submit` to a real cluster."""

import errno
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import SmallSet, tiny_with

from jobs import __main__ as lawm
from jobs import submit
from jobs._cli import base_parser, describe, job_module, job_names, one_line, resolve_config, run_job
from lawm.cluster.session import Need, Session
from lawm.config import LawmError, override
from lawm.data import ClipReader, read_index
from lawm.recipes import RECIPES, tiny
from lawm.training import fit_local

JOBS = job_names()


def test_lawm_lists_every_job_with_its_line(capsys) -> None:
    assert lawm.main([]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for name, line in JOBS.items():
        assert line, f"jobs/{name}.py has no docstring"
        assert name in said and " ".join(line.split()) in said


@pytest.mark.parametrize("name", JOBS)
def test_every_job_has_help_recipe_set_and_dry_run(name: str, capsys) -> None:
    assert lawm.main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"lawm {name}" in said
    for option in ("--recipe", "--set", "--dry-run"):
        assert option in said


@pytest.mark.parametrize("name", JOBS)
def test_help_keeps_each_example_on_a_line_of_its_own(name: str, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    doc = importlib.import_module(job_module(name)).__doc__ or ""
    examples = [line.strip() for line in doc.splitlines() if line.strip().startswith("lawm ")]
    lawm.main([name, "--help"])
    said = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert set(examples) <= set(said)


def test_help_does_not_import_ray() -> None:
    """A second for `lawm` and for a mistyped command, not five."""
    script = (
        "import sys, jobs.__main__ as m; m.main(['index', '--help']); sys.exit(bool({'ray', 'torch'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["indx"], "Did you mean index?"),
        (["zzz"], "no such job. There are:"),
        (["index"], "SOURCE. `lawm index --help`"),
        (["index", ".", "--recipe", "huge"], "--recipe huge: no such recipe. There are: tiny"),
        (["index", ".", "--set", "train.stepz=3"], "did you mean 'steps'? Valid fields:"),
        (["index", ".", "--set", "train.steps"], "expected FIELD=VALUE"),
        (["index", ".", "--set", "train.steps=-1"], "greater than or equal to 1 (got -1)"),
        (["index", ".", "--nope"], "unrecognized arguments: --nope"),
        (["submit"], "which job?"),
        (["submit", "submit"], "submit: no such job"),
        (["submit", "index", "--recipe", "tiny", "--set", "a.b=1"], "config has no field 'a'"),
        (["submit", "index", "--address", "http://127.0.0.1:9", "x"], "http://127.0.0.1:9: cannot reach a Ray cluster"),
        (["submit", "index", "--address", "http://127.0.0.1:9", "--env-var", "NOT_SET_HERE"], "NOT_SET_HERE: not set"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(argv: list[str], said: str, capsys) -> None:
    assert lawm.main(argv) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.startswith("lawm: ") and captured.err.count("\n") == 1 and "Traceback" not in captured.err
    assert captured.out == ""


def test_the_console_script_and_the_module_pass_exit_codes_on() -> None:
    for command in (
        [sys.executable, "-m", "jobs"],
        [sys.executable, "-m", "jobs.index"],
        [str(Path(sys.executable).with_name("lawm"))],
    ):
        done = subprocess.run([*command, "--recipe"], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done


def test_settings_apply_in_order() -> None:
    args = base_parser("x", "").parse_args(
        [
            "--recipe",
            "tiny",
            "--set",
            "train.steps=5",
            "--set",
            "train.steps=7",
            "--set",
            "model.bottleneck.kind=sparse",
        ]
    )
    config = resolve_config(args)
    assert (config.recipe, config.train.steps, config.model.bottleneck.kind) == ("tiny", 7, "sparse")
    assert resolve_config(args, base=RECIPES["small"]()).train.steps == 7


def test_describe_is_yaml_that_says_it_all(capsys) -> None:
    describe(tiny(), [Need("training worker", 2, 1.5, 1)], 120, out="runs/x")
    said = yaml.safe_load(capsys.readouterr().out)
    assert said["config"] == tiny().model_dump(mode="json")
    assert said["resources"] == ["2 x training worker (1.5 CPU + 1 GPU each)"]
    assert (said["clips"], said["out"]) == (120, "runs/x")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (LawmError("a: not there.\nLook again"), 2, "lawm: a: not there. Look again\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), 2, "lawm: /data/x: the disk is full."),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), 2, "lawm: /data/x: permission denied."),
        (FileNotFoundError(errno.ENOENT, "No such file", "/data/x"), 2, "lawm: /data/x: no such file"),
        (KeyboardInterrupt(), 130, "lawm: interrupted."),
        (None, 0, ""),
    ],
)
def test_errors_become_exit_codes(error: BaseException | None, code: int, said: str, capsys) -> None:
    @run_job
    def main(argv: list[str] | None = None) -> int:
        if error is not None:
            raise error
        return 0

    assert main([]) == code
    err = capsys.readouterr().err
    assert err.startswith(said) and err.count("\n") == (1 if said else 0)


def test_a_bug_keeps_its_traceback() -> None:
    @run_job
    def main(argv: list[str] | None = None) -> int:
        raise KeyError("typo")

    with pytest.raises(KeyError):
        main([])
    assert one_line(OSError(errno.EBADF, "Bad file descriptor")) is None


def test_every_job_is_a_decorated_main() -> None:
    for name in JOBS:
        main = importlib.import_module(job_module(name)).main
        assert hasattr(main, "__wrapped__"), f"jobs/{name}.py: main is not decorated with run_job"


def test_jobs_on_a_checkpoint_take_its_model_and_count_its_clips(tmp_path: Path, small_set: SmallSet, capsys) -> None:
    config = tiny_with(train__steps=2, train__checkpoint_every=2, data__index=small_set.index)
    run = str(tmp_path / "run")
    config = override(config, "model.latent_dim", 6)
    fit_local(config, "latent_action", run)
    there = ["--checkpoint", run, "--labels", small_set.labels, "--dry-run"]

    assert lawm.main(["evaluate", *there, "--set", "evaluate.clips=5000"]) == 0
    said = yaml.safe_load(capsys.readouterr().out)
    held_out = len(ClipReader(config, "val").plan)
    assert said["clips"] == held_out < 5000

    control = str(tmp_path / "control")
    fit_local(override(config, "data.labels", small_set.labels), "controller", control, run)
    few = ["--controller", control, "--set", "plan.episodes=2"]
    assert lawm.main(["plan", *there, *few, "--recipe", "demo"]) == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert said["config"]["plan"] == RECIPES["demo"]().plan.model_dump(mode="json") | {"episodes": 2}
    assert said["config"]["model"]["latent_dim"] == 6 and said["config"]["recipe"] == "tiny"

    assert lawm.main(["controller", *there, "--set", "controller.train.batch=5", "--set", "cluster.workers=2"]) == 2
    assert "train.batch = 5 is not divisible by 2 workers" in capsys.readouterr().err
    nowhere = str(tmp_path / "nowhere")
    for argv, wrong in (
        (["plan", *there, "--set", "plan.episodes=2", "--controller", nowhere], f"{nowhere}: no checkpoint there"),
        (["plan", *there, "--set", "plan.episodes=2", "--controller", run], "holds a latent_action, not a controller"),
        (["plan", *there, *few, "--set", "plan.episodes=999"], "plan.episodes = 999, and the held-out labelled videos"),
        (["evaluate", *there, "--set", "evaluate.context=4"], "leaves nothing of 4 states to predict"),
        (["evaluate", *there, "--set", "model.latent_dim=3"], "cannot be changed (model.latent_dim = 6 there, 3 now)"),
        (["evaluate", *there, "--deterministic", nowhere], f"{nowhere}: no checkpoint there"),
        (["train", "--videos", nowhere, "--recipe", "tiny", "--dry-run"], f"{nowhere}: no such file or folder"),
    ):
        assert lawm.main(argv) == 2
        err = capsys.readouterr().err
        assert err.startswith("lawm: ") and wrong in err and err.count("\n") == 1


# ---------------------------------------------------------------- submit
def test_submit_dry_run_prints_what_it_would_send(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    argv = ["--env-var", "A=b c", "index", "s3://b/x y", "--recipe", "tiny", "--env-var", "SECRET", "--dry-run"]
    assert submit.main([*argv, "--address", "http://head:8265"]) == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert said["address"] == "http://head:8265"
    assert said["entrypoint"] == "python -m jobs.index 's3://b/x y' --recipe tiny"
    env = said["runtime_env"]
    assert (env["env_vars"]["A"], env["env_vars"]["SECRET"]) == ("b c", "s")
    assert {".venv", ".git", "runs"} <= set(env["excludes"])
    assert Path(env["working_dir"], "jobs", "index.py").is_file()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000/")
    for more, url in (([], "http://minio:9000"), (["--env-var", "AWS_ENDPOINT_URL_S3=http://other"], "http://other")):
        assert submit.main([*more, "inspect", "x.parquet", "--dry-run"]) == 0
        said = yaml.safe_load(capsys.readouterr().out)
        assert said["runtime_env"]["env_vars"]["AWS_ENDPOINT_URL_S3"] == url  # not another server than here
        assert said["entrypoint"] == "python -m jobs.inspect_ x.parquet"


def _submit(session: Session, *argv: str) -> int:
    assert session.dashboard
    return submit.main(["--address", session.dashboard, "--python", sys.executable, "index", *argv])


def test_submit_runs_the_job_follows_its_log_and_returns_its_status(
    ray_cluster: Session, make_video: Any, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # --address goes before it
    make_video(tmp_path / "videos/a.mp4")
    out = tmp_path / "index.parquet"
    assert _submit(ray_cluster, str(tmp_path / "videos"), "--out", str(out), "--recipe", "tiny") == 0
    assert len(read_index(str(out)).usable()) == 1
    assert "1 videos in" in capsys.readouterr().out
    assert os.environ["RAY_ADDRESS"] == "127.0.0.1:1"

    assert _submit(ray_cluster, str(tmp_path / "nowhere"), "--out", str(out)) == 2
    assert f"lawm: {tmp_path}/nowhere: no such file or folder" in capsys.readouterr().out


def test_submit_with_a_wrong_token_is_one_line(ray_cluster: Session) -> None:
    argv = [sys.executable, "-m", "jobs.submit", "--address", str(ray_cluster.dashboard), "index", "x"]
    env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 2
    assert "asks for a token" in done.stderr and done.stderr.count("\n") == 1


def test_a_number_can_be_meant_as_text_and_paths_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = base_parser("x", "doc")
    monkeypatch.chdir(tmp_path)
    asked = ["encoder.kind=vjepa2", "encoder.version=2.1", "encoder.weights=w.pt", "data.index=i.parquet"]
    args = parser.parse_args(["--recipe", "tiny", *(part for one in asked for part in ("--set", one))])
    config = resolve_config(args)
    assert config.encoder.version == "2.1"
    assert config.encoder.weights == str(tmp_path / "w.pt") and config.data.index == str(tmp_path / "i.parquet")
    wrong = parser.parse_args(["--recipe", "tiny", "--set", "train.steps=0.5"])
    with pytest.raises(LawmError, match=r"train\.steps"):
        resolve_config(wrong)
