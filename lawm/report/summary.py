"""What stands first in a report: the verdict and the figures that it rests on, and how latents are used."""

from collections.abc import Sequence

import numpy as np

from lawm.evaluation import LatentUsage, Missing, Result, judge
from lawm.report.sections import Bars, Headline, Headlines, Section, Text

HEADLINES = (
    "error_vs_deterministic",
    "shuffled_vs_error",
    "probe_r2_linear",
    "leakage_score",
    "cycle_ratio",
    "controller_vs_idm",
    "planning_vs_random",
    "planning_vs_no_action",
)
"""Names of results, in the order in which they are shown."""


def verdict_sections(results: Sequence[Result]) -> list[Section]:
    """A verdict in words for each data set."""
    sections: list[Section] = []
    for dataset in dict.fromkeys(result.dataset for result in results):
        found = judge([result for result in results if result.dataset == dataset])
        sections.append(Text(f"Verdict ({dataset})", found.text, warning=found.carries == "no"))
    return sections


def headline_section(results: Sequence[Result]) -> Headlines | None:
    """The key figures of the first data set, each with what its landmark means; None where none was measured."""
    if not results:
        return None
    dataset = results[0].dataset
    by_name = {result.name: result for result in reversed(results) if result.dataset == dataset}
    items = [
        Headline(r.name, r.value, r.low, r.high, r.n, r.unit, note=r.one, videos=r.videos)
        for r in (by_name[name] for name in HEADLINES if name in by_name)
    ]
    return Headlines(f"Headline figures ({dataset}, 95 % intervals over videos)", items) if items else None


def summary_sections(results: Sequence[Result], headlines: Headlines | None = None) -> list[Section]:
    """The verdict on the first data set, the key figures (or the `headlines` given), then other data sets' verdicts."""
    verdicts, shown = verdict_sections(results), headlines or headline_section(results)
    return [*verdicts[:1], *([shown] if shown is not None else []), *verdicts[1:]]


def usage_sections(usage: LatentUsage | Missing) -> list[Section]:
    """How many numbers a latent uses, nats of each number, and how often each code is taken."""
    if isinstance(usage, Missing):
        return [Text("Use of the latents", f"Not there: {usage.reason}.")]
    width, count = len(usage.spread_Z), len(usage.active_M)
    of = f"{count:,} transitions of {usage.videos:,} videos"
    share = np.bincount(usage.active_M, minlength=width + 1) / count
    sections: list[Section] = [
        Bars(
            "Numbers in use per latent action", share.tolist(), "numbers with |z| of a tenth of the largest or more",
            "share of transitions",
            caption=f"{usage.kind} latents of {width} numbers, {of}; {usage.active_M.mean():.1f} in use on average. "
            f"Effective rank {usage.rank:.1f}.",
        )
    ]  # fmt: skip
    if isinstance(usage.kl_Z, np.ndarray):
        nats = np.sort(usage.kl_Z)[::-1]
        alive = int((nats > 0.01).sum())
        sections.append(
            Bars(
                "Nats of each number of the latents", nats.tolist(), "number, by its nats", "KL to the prior, nats",
                start=1,
                caption=f"Mean of {of}: {nats.sum():.2f} nats a transition; {alive} of {width} numbers hold more than "
                "0.01.",
            )
        )  # fmt: skip
    else:
        spread = np.sort(usage.spread_Z)[::-1]
        sections.append(
            Bars(
                "Spread of each number of the latents", spread.tolist(), "number, by its spread", "standard deviation",
                start=1, caption=f"Over {of}.",
            )
        )  # fmt: skip
    if isinstance(usage.counts_K, np.ndarray):
        taken = np.sort(usage.counts_K)[::-1]
        used = int((taken > 0).sum())
        sections.append(
            Bars(
                "Codes in use", (taken[: max(used, 1)] / count).tolist(), "code, by how often it is taken",
                "share of transitions", start=1,
                caption=f"{used:,} of {len(taken):,} codes are taken, as if {usage.perplexity:.1f} were in equal use "
                f"(perplexity); {of}.",
            )
        )  # fmt: skip
    return sections
