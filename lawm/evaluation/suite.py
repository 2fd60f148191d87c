"""Every evaluation, in the order in which results are listed. One more is a file beside these and a line here."""

from typing import Any

from lawm.evaluation import (
    capacity,
    control,
    controllability,
    cycle,
    leakage,
    probes,
    sampling,
    transfer,
)
from lawm.evaluation.subject import Evaluation

SUITE: dict[str, Evaluation[Any]] = {
    one.name: one
    for one in (
        capacity.EVALUATION,
        leakage.EVALUATION,
        cycle.EVALUATION,
        transfer.EVALUATION,
        controllability.EVALUATION,
        sampling.EVALUATION,
        control.EVALUATION,
        probes.EVALUATION,
    )
}
