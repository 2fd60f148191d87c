"""Planning among latents with proposals from the learned prior, at a tenth of the candidates, against random shooting
from N(0, I): on the run of `benchmarks.pusht`, held-out clips, the same world model and inverse controller.

    python -m benchmarks.pusht [--quick]
    python -m benchmarks.prior --out runs/pusht

`cost` is the world model's predicted distance to the goal of the best candidate, `error` what the simulator makes of
its actions (arena units); `ratio` is prior over shooting, paired over episodes. CEM over actions, latents and the
prior's noise stand beside. The last line is a JSON object.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks._common import finish, parser
from jobs import plan
from jobs._run import read_results
from lawm.config import LawmError
from lawm.evaluation import interval, ratio

PACKAGES = ("lawm", "torch", "ray", "gym-pusht")
SHOOTING = {"solver": "random", "iterations": "1", "elites": "1", "select": "best"}
WAYS: dict[str, dict[str, str]] = {
    "shooting": SHOOTING | {"over": "latents", "latent_draws": "standard", "samples": "320"},
    "shooting, a tenth": SHOOTING | {"over": "latents", "latent_draws": "standard", "samples": "32"},
    "seen latents, a tenth": SHOOTING | {"over": "latents", "samples": "32"},
    "prior, a tenth": SHOOTING | {"over": "prior", "samples": "32"},
    "CEM over actions": {"over": "actions"},
    "CEM over latents": {"over": "latents"},
    "CEM over the prior": {"over": "prior"},
}
"""Settings of `plan`; CEM's budget is the recipe's."""


def main(argv: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument("--out", type=Path, default=Path("runs/pusht"), help="the folder of benchmarks.pusht")
    made.add_argument("--labelled", type=int, default=100, help="which of its controllers")
    made.add_argument("--episodes", type=int, help="held-out clips (default: 64; --quick: 8)")
    made.add_argument("--horizon", type=int, default=3)
    args = made.parse_args(argv)
    episodes = args.episodes or (8 if args.quick else 64)
    found: dict[str, dict[str, np.ndarray]] = {}
    said: dict[str, Any] = {}
    groups: list[str] = []
    for name, settings in WAYS.items():
        out = args.out / "prior" / name.replace(" ", "-").replace(",", "")
        here = ["--checkpoint", f"{args.out}/model", "--controller", f"{args.out}/controller-{args.labelled}"]
        here += ["--prior", f"{args.out}/prior", "--labels", f"{args.out}/pusht/labels.parquet", "--out", str(out)]
        fixed = {"goal_after_s": "null", "horizon": str(args.horizon), "episodes": str(episodes), "films": "0"}
        here += [part for k, v in (fixed | settings).items() for part in ("--set", f"plan.{k}={v}")]
        if plan.main(here):
            raise LawmError(f"{name}: planning failed")
        rows = pq.read_table(f"{out}/episodes.parquet").to_pylist()
        groups = [row["group"] for row in rows]
        costs = np.array([json.loads(row["costs"])["best"] for row in rows])
        errors = np.array([json.loads(row["errors"])["planned"]["translation"] for row in rows])
        found[name] = {"cost": costs, "error": errors}
        results = {r.name: r.value for r in read_results(f"{out}/results.json").results}
        said[name] = {"cost": float(costs.mean()), "error": float(errors.mean())}
        said[name]["vs_no_action"] = results["planning_vs_no_action"]
    ratios = {}
    for what in ("cost", "error"):
        pair = [found["prior, a tenth"][what], found["shooting"][what]]
        one = interval(ratio, pair, groups, 1000, 0, positive=True)
        ratios[what] = {"value": one.value, "low": one.low, "high": one.high}
    print(said)
    figures = {"prior_vs_shooting": ratios, "ways": said, "episodes": episodes, "horizon": args.horizon}
    finish("prior", figures, PACKAGES)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
