"""What the jobs that train say: how long is left, what can be done next, where they write."""

import json
import shlex
from argparse import Namespace
from pathlib import Path

import pytest
from small_runs import SmallSet

from jobs import controller, decoder, train
from jobs._cli import base_parser, resolve_config
from jobs._run import (
    Pace,
    add_data_arguments,
    beside,
    counted,
    next_step,
    quarantined,
    spoken,
    training_note,
    with_data,
)
from jobs.report import loss_curves, read_metrics
from lawm.config import Config, DataConfig, LawmError, Source
from lawm.data import ClipReader


def test_the_time_left_is_told_from_the_pace_of_steps_not_of_the_start() -> None:
    pace = Pace()
    assert pace.left(0.0, 0, 100) is None
    assert pace.left(60.0, 10, 100) is None  # a minute of starting
    assert pace.left(70.0, 20, 100) == pytest.approx(80.0)
    assert pace.left(70.0, 20, 100) == pytest.approx(80.0)
    assert pace.left(90.0, 30, 100) == pytest.approx(70 * 30 / 20)
    assert pace.left(100.0, 20, 100) is None  # workers that were started again
    assert pace.left(130.0, 30, 100) is None and pace.left(135.0, 40, 100) == pytest.approx(30.0)
    assert pace.left(200.0, 100, 100) is None


def test_how_long_that_is() -> None:
    said = [spoken(s) for s in (0.2, 40, 89, 90, 700, 5399, 12000)]
    assert said == ["1 s", "40 s", "89 s", "2 min", "12 min", "1 h 30 min", "3 h 20 min"]


def test_lines_off_a_terminal_say_step_loss_pace_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("jobs._run.time.monotonic", lambda: now[0])
    with counted("latent action") as show:
        for done in (330, 340, 350, 360):  # a run that goes on from step 330
            show(done, 660, training_note({"loss": 0.5, "clips_per_second": 3.2, "data_wait_share": 0.4}))
            now[0] += 20.0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("latent action: 330 of 660 loss 0.5000, 3.2 clips/s, 40% waiting for clips")
    assert "left" not in lines[0] and lines[-1].endswith(", about 10 min left")


def test_run_folders_of_controllers_and_decoders_lie_beside_their_model() -> None:
    for given, expected in (
        ("runs/mine", "runs/mine-decoder"),
        ("runs/mine/", "runs/mine-decoder"),
        ("runs/mine/step_00000012", "runs/mine-decoder"),
        ("s3://bucket/runs/mine/step_00000012", "s3://bucket/runs/mine-decoder"),
    ):
        args = Namespace(checkpoint=given, out=None)
        beside(args, "decoder")
        assert args.out == expected
    args = Namespace(checkpoint="runs/mine", out="elsewhere")
    beside(args, "decoder")
    assert args.out == "elsewhere"


def test_what_comes_next_can_be_pasted() -> None:
    said = next_step("controller", "/my runs/c/step_00000010", "/my runs/m")
    first = shlex.split(said.partition(",")[0])
    assert first == ["lawm", "evaluate", "--checkpoint", "/my runs/m", "--controller", "/my runs/c"]
    assert "lawm decoder --checkpoint" in said and "lawm plan" in said
    assert next_step("decoder", "d/step_00000001", "m").startswith("lawm report --checkpoint m --decoder d")


def test_what_names_the_clips_replaces_what_a_checkpoint_was_trained_on() -> None:
    def after(trained: DataConfig, *given: str) -> tuple[str | None, str | None, int, str | None]:
        parser = base_parser("evaluate", None, default_recipe=None)
        add_data_arguments(parser)
        args = parser.parse_args(list(given))
        data = resolve_config(args, with_data(Config(data=trained), args)).data
        return data.index, data.cache, len(data.mixture), data.labels

    both = DataConfig(index="/i", cache="/c", labels="/l")
    assert after(both) == ("/i", "/c", 0, "/l")
    assert after(both, "--index", "/new") == after(both, "--set", "data.index=/new") == ("/new", None, 0, "/l")
    assert after(both, "--index", "/i") == ("/i", None, 0, "/l")
    assert after(both, "--cache", "/new") == after(both, "--set", "data.cache=/new") == (None, "/new", 0, "/l")
    assert after(both, "--cache", "/new", "--index", "/x") == ("/x", "/new", 0, "/l")
    assert after(both, "--index", "/x", "--set", "data.cache=/new") == ("/x", "/new", 0, "/l")
    assert after(both, "--labels", "/new") == ("/i", "/c", 0, "/new")
    assert after(both, "--set", "data.cache=null") == ("/i", None, 0, "/l")
    assert after(both, "--mix", "/a.parquet=0.5", "--mix", "/b.parquet=0.5") == (None, None, 2, "/l")
    mixed = DataConfig(mixture=(Source(index="/a"), Source(index="/b")))
    assert after(mixed, "--index", "/x") == ("/x", None, 0, None)
    assert after(mixed, "--set", "data.index=/x") == ("/x", None, 0, None)
    with pytest.raises(LawmError, match="give --index or --cache, or --mix"):
        after(both, "--index", "/x", "--mix", "/a.parquet=1")


def test_a_cache_has_no_pictures() -> None:
    with pytest.raises(LawmError, match=r"/c holds states: give the videos' --index as well"):
        ClipReader(Config(data=DataConfig(cache="/c")), frames=True)


def test_a_run_that_is_written_to_can_be_reported(tmp_path: Path) -> None:
    """The last lines of its files are torn."""
    lines = [{"step": s, "prediction": 1 / s, "effective_rank": 2.0} for s in (1, 2, 3)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 4, "predic')
    assert read_metrics(str(tmp_path)) == lines
    assert len(loss_curves({"run": str(tmp_path)})) == 2
    (tmp_path / "quarantine.jsonl").write_text('{"key": "a.mp4", "reason": "corrupt"}\n{"key": "b.')
    assert quarantined(str(tmp_path)) == ["a.mp4: corrupt"]
    assert read_metrics(str(tmp_path / "none")) == quarantined(str(tmp_path / "none")) == []


def test_from_a_model_to_a_controller_and_a_decoder(
    small_set: SmallSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "mine"
    data = ["--index", small_set.index]
    steps = ["--set", "train.steps=4", "--set", "train.checkpoint_every=2"]
    assert train.main(["--recipe", "tiny", "--plain", *data, "--out", str(run), *steps]) == 0
    said = capsys.readouterr().out
    assert f"next: lawm evaluate --checkpoint {run}" in said and "goes on" not in said
    assert train.main(["--recipe", "tiny", "--plain", *data, "--out", str(run), *steps]) == 0
    assert "done: all 4 steps are in" in capsys.readouterr().out
    longer = ["--recipe", "tiny", "--plain", *data, "--out", str(run), *steps, "--set", "train.steps=6"]
    assert train.main([*longer, "--dry-run"]) == 0
    assert "goes on from step 4 of 6" in capsys.readouterr().out
    assert train.main(longer) == 0
    said = capsys.readouterr().out
    assert "goes on from step 4 of 6" in said and "6 steps now, 4 before" in said
    few = ["--set", "controller.train.steps=2", "--set", "decoder.train.steps=2"]
    labels = ["--labels", small_set.labels]
    assert controller.main(["--plain", "--checkpoint", str(run), *data, *labels, *few]) == 0
    said = capsys.readouterr().out
    assert "pictures take a decoder" in said and (tmp_path / "mine-controller/config.json").exists()
    assert decoder.main(["--plain", "--checkpoint", str(run), *data, *few]) == 0
    assert (tmp_path / "mine-decoder/config.json").exists() and "next: lawm report" in capsys.readouterr().out
    # A model that has gone on is another one: what was begun on it does not go on with it in silence.
    assert train.main([*longer, "--set", "train.steps=8"]) == 0
    capsys.readouterr()
    assert decoder.main(["--plain", "--checkpoint", str(run), *data, "--set", "decoder.train.steps=4"]) == 2
    assert "was begun on another checkpoint" in " ".join(capsys.readouterr().err.split())


def test_what_comes_next_where_nothing_is_held_out() -> None:
    assert "evaluate.split=all" in next_step("latent_action", "/r/mine/step_00000004", None, held_out=False)
    assert "evaluate.split" not in next_step("latent_action", "/r/mine/step_00000004", None)
