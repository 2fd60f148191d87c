"""An evaluation that was killed goes on where it was, and measures what an undisturbed one measures."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import SmallSet, tiny_with

from lawm.cluster import evaluate as evaluating
from lawm.cluster.evaluate import FAILED, Company, Evaluator, check_asked, evaluate
from lawm.cluster.parts import Found, Parts, Unit, said_of_all
from lawm.cluster.session import Session
from lawm.config import Config, override
from lawm.evaluation import SUITE, Missing
from lawm.training import fit_local


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_set: SmallSet) -> tuple[Config, Company]:
    where = str(tmp_path_factory.mktemp("parts") / "model")
    config = tiny_with(train__steps=2, train__checkpoint_every=2, data__index=small_set.index, evaluate__batch=4)
    fit_local(config, "latent_action", where)
    return config, Company(where)


def found_by(config: Config, company: Company, unit: Unit) -> Found:
    with torch.no_grad():
        return Evaluator(config, company).run(unit, {"leakage": Missing("no fit here")})


def test_a_part_is_found_again_and_nothing_else_is(run: tuple[Config, Company], tmp_path: Path) -> None:
    config, company = run
    work = check_asked(config, company, tuple(SUITE))
    assert len(work.units) > 1 and work.fits

    def about() -> dict[str, Any]:
        return said_of_all(config, company.all, work.plans)

    parts = Parts(str(tmp_path / "parts"), about)
    for unit in (work.units[0], work.fits[0]):
        found = found_by(config, company, unit)
        assert found.values
        parts.keep(unit, found)
        again = Parts(str(tmp_path / "parts"), about).found(unit)
        assert again is not None and (again.refused, again.clips) == (found.refused, found.clips)
        assert list(again.values) == list(found.values)
        for name, value in found.values.items():
            same = again.values[name]
            if isinstance(value, Missing):
                assert same == value
                continue
            assert not isinstance(same, Missing) and type(same) is type(value)
            for field, array in vars(value).items():
                if isinstance(array, np.ndarray):
                    np.testing.assert_array_equal(vars(same)[field], array)
    assert set(parts.done(work.units)) == {0}
    assert parts.found(replace(work.units[0], positions=(0, 1))) is None
    other = override(config, "evaluate.seed", 1)
    assert not Parts(str(tmp_path / "parts"), lambda: said_of_all(other, company.all, work.plans)).done(work.units)
    bare = override(config, "cluster.evaluate_actors", 2)  # the same values, however they are spread
    assert Parts(str(tmp_path / "parts"), lambda: said_of_all(bare, company.all, work.plans)).done(work.units)
    for part in (tmp_path / "parts").glob("*-capacity.parquet"):
        part.write_bytes(part.read_bytes()[:50])  # torn
    assert not parts.done(work.units)
    parts.forget()
    assert not (tmp_path / "parts").exists()


KILLED = """
import sys
from lawm.cluster import evaluate as evaluating
from lawm.cluster.parts import Parts
from jobs.evaluate import main
keep = Parts.keep
def slowly(self, unit, found):
    keep(self, unit, found)
    print("kept", flush=True)
    if not unit.fits:
        import time; time.sleep(60)
Parts.keep = slowly
main(sys.argv[1:])
"""


@pytest.mark.ray
def test_killed_between_two_units_it_goes_on(
    ray_cluster: Session, run: tuple[Config, Company], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL once a unit is kept; the second time that unit is not measured again, and the figures are those of an
    evaluation that nothing disturbed."""
    from jobs import evaluate as job

    config, company = run
    out = tmp_path / "results.json"
    given = ["--checkpoint", company.model, "--suite", "capacity", "leakage", "--out", str(out)]
    environment = {**os.environ, "RAY_ADDRESS": ""}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *given], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    until, fitted = time.monotonic() + 240, 0
    while time.monotonic() < until:
        kept = list(tmp_path.glob("results.parts/*.json"))
        if any("capacity" in path.read_text() for path in kept):
            fitted = len(kept)
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert fitted > 1 and not out.exists()
    assert job.main(given) == 0
    said = capsys.readouterr()
    work = check_asked(config, company, ("capacity", "leakage"))
    assert f"1 of {len(work.units)} units were measured before" in said.out + said.err
    assert out.exists() and not (tmp_path / "results.parts").exists()
    from jobs._run import read_results

    assert read_results(str(out)).results == evaluate(config, company, ("capacity", "leakage")).results


def test_one_that_fails_costs_itself_alone(run: tuple[Config, Company], monkeypatch: pytest.MonkeyPatch) -> None:
    config, company = run

    def fails(*_: Any) -> Any:
        raise ZeroDivisionError("a fault of its own")

    broken = dict(SUITE, cycle=replace(SUITE["cycle"], measure=fails))
    monkeypatch.setattr(evaluating, "SUITE", broken)
    unit = check_asked(config, company, ("capacity", "cycle")).units[0]
    found = found_by(config, company, unit)
    cycle = found.values["cycle"]
    assert isinstance(cycle, Missing) and cycle.reason.startswith(FAILED) and "a fault of its own" in cycle.reason
    assert not isinstance(found.values["capacity"], Missing)
