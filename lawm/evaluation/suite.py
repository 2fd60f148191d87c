"""Every evaluation, in the order in which results are listed. One more is a file beside these and a line here."""

from typing import Any

from lawm.evaluation import capacity, control, cycle, leakage, probes
from lawm.evaluation.subject import Evaluation

SUITE: dict[str, Evaluation[Any]] = {
    one.name: one
    for one in (capacity.EVALUATION, leakage.EVALUATION, cycle.EVALUATION, control.EVALUATION, probes.EVALUATION)
}
