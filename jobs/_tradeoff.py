"""What several runs, or a search's trials, measured, to be set one beside another in a report."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from jobs._run import read_results
from jobs.evaluate import beside
from lawm import storage
from lawm.config import LawmError
from lawm.report import AGAINST, CAPACITIES, Estimate, Measurement, format_number

STRENGTHS = {"noisy": "beta", "sparse": "lambda_l1", "discrete": "codebook_size", "adaptive": "target"}
"""The field that limits each kind of latent."""
FIGURES = [name for name, _ in (*CAPACITIES, *AGAINST)]


def results_of(model: str) -> list[str]:
    """Results that lie in the folder of a run, or of a checkpoint's run, where `lawm evaluate` and `lawm plan` put
    them."""
    from lawm.training import run_of

    usual = (beside(model), storage.join(run_of(model), "plan", "results.json"))
    return [where for where in usual if storage.exists(where)]


def measurements(runs: Sequence[str]) -> list[Measurement]:
    """What was measured of each run folder, on the data set that most of them were measured on. Raises LawmError."""
    from lawm.training import read_about, run_of

    found = {run: [one for where in results_of(run) for one in read_results(where).results] for run in runs}
    counts = Counter(name for results in found.values() for name in dict.fromkeys(one.dataset for one in results))
    dataset = counts.most_common(1)[0][0] if counts else ""
    measured = []
    for run, results in found.items():
        bottleneck = read_about(run)["config"]["model"]["bottleneck"]
        figures = {one.name: Estimate(one.value, one.low, one.high) for one in results if one.dataset == dataset}
        name = run_of(run).rpartition("/")[2]
        measured.append(Measurement(name, bottleneck["kind"], setting_of(bottleneck), figures))
    return measured


def setting_of(bottleneck: dict[str, Any]) -> str:
    """The strength of a bottleneck's config, as in `beta 3e-05`; '' of kinds without one."""
    field = STRENGTHS.get(bottleneck["kind"])
    return f"{field} {_shown(bottleneck[field])}" if field in bottleneck else ""


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def sweep_measurements(uri: str) -> list[Measurement]:
    """The finished trials of a search: `trials.parquet` of `lawm tune`, or the folder that it lies in. Raises LawmError
    for a file that is none."""
    import pyarrow as pa

    from lawm.parquet import read_parquet

    where = uri if uri.endswith(".parquet") else storage.join(uri, "trials.parquet")
    try:
        rows = read_parquet(io.BytesIO(storage.read_bytes(where))).to_pylist()
    except pa.ArrowInvalid as error:
        raise LawmError(f"{where}: not a Parquet table ({error}); expected trials.parquet of lawm tune") from error
    if rows and not {"trial", "status"} <= rows[0].keys():
        raise LawmError(f"{where}: no table of trials (no columns trial and status); expected that of lawm tune")
    group = _kind_searched(where)
    measured = []
    for row in (row for row in rows if row["status"] == "finished"):
        figures = {
            name: Estimate(row[name], row.get(f"{name}_low"), row.get(f"{name}_high"))
            for name in FIGURES
            if row.get(name) is not None
        }
        settings = {name.rpartition(".")[2]: value for name, value in row.items() if "." in name}
        kind = settings.pop("kind", None) or group
        said = ", ".join(f"{k} {format_number(v) if isinstance(v, float) else v}" for k, v in settings.items())
        measured.append(Measurement(row["trial"], kind, said, figures))
    if not measured:
        raise LawmError(f"{where}: none of its {len(rows)} trials is finished")
    return measured


def _kind_searched(where: str) -> str:
    """The kind of bottleneck that a search was about, by the ledger beside its trials; `trials` without one."""
    ledger = storage.join(where.rpartition("/")[0], "search.json")
    with suppress(LawmError, ValueError, KeyError, TypeError):
        return str(json.loads(storage.read_bytes(ledger))["config"]["model"]["bottleneck"]["kind"])
    return "trials"
