"""PushT in closed loop, by stable-worldmodel's protocol: a world model that has seen no action, and a controller taught
on few labelled episodes.

    python -m benchmarks.pusht                    trains for up to two hours on two cores; a rerun goes on where it was
    python -m benchmarks.pusht --quick            a model trained in minutes, few episodes
    python -m benchmarks.pusht --labelled 10 30 100 300 1000    success over the number of labelled episodes

Goal: what a held-out episode shows 2.5 s on; 5 s to reach it; a new plan every 0.5 s, as long as the time to the goal's
(`--set plan.arrive=false`: 2.5 s each); success: agent and block together within 20 arena units, the block within
pi / 9. The data's policy is random, and CEM's budget is the recipe's, smaller than the protocol's 300 x 30. The last
line is a JSON object.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks._common import finish, parser
from jobs import controller, encode, index, plan, policy, prior, simulate, train
from jobs._run import read_results
from lawm.config import LawmError
from lawm.evaluation import Result

HELD_OUT = 0.05
PACKAGES = ("lawm", "torch", "ray", "gym-pusht")


def done(job: Any, *argv: str) -> None:
    """Runs a job; a failure ends the benchmark."""
    if job.main([*argv]) not in (0, 1):  # 1: some episodes failed, which their table says
        raise LawmError(f"{job.__name__} failed")


class Trial:
    """The folder of a run, and the arguments that its jobs share."""

    def __init__(self, out: Path, episodes: int, recipe: list[str]) -> None:
        self.out, self.episodes, self.recipe = out, episodes, recipe
        self.labels = self.at("pusht", "labels.parquet")
        self.model = self.at("model")

    def at(self, *parts: str) -> str:
        return str(self.out.joinpath(*parts))

    def data(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        where = self.at("pusht")
        done(simulate, "--out", where, "--episodes", str(self.episodes), "--processes", "2", *self.recipe)
        if not Path(self.at("index.parquet")).exists():
            done(index, where, "--out", self.at("index.parquet"), *self.recipe)
        done(encode, "--index", self.at("index.parquet"), "--out", self.at("cache"), *self.recipe)

    def clips(self, labelled: int | None = None) -> list[str]:
        """Arguments that name the clips: all, or those of about so many labelled episodes."""
        argv = ["--cache", self.at("cache")]
        if labelled is None:
            return argv
        share = min(1.0, labelled / (self.episodes * (1 - HELD_OUT)))
        return [*argv, "--labels", self.labels, "--set", f"data.train_fraction={share:.6f}"]

    def train(self) -> None:
        done(train, "--plain", *self.clips(), "--out", self.model, *self.recipe)
        done(prior, "--plain", "--checkpoint", self.model, "--out", self.at("prior"))

    def taught(self, labelled: int) -> tuple[str, str]:
        """The controller, and behaviour cloning, that so many labelled episodes make."""
        found = []
        for job, name in ((controller, "controller"), (policy, "policy")):
            out = self.at(f"{name}-{labelled}")
            done(job, "--plain", "--checkpoint", self.model, *self.clips(labelled), "--out", out)
            found.append(out)
        return found[0], found[1]

    def driven(self, labelled: int, episodes: int, *more: str, name: str = "") -> dict[str, Result]:
        """Closed loop with the controller of so many labelled episodes."""
        own, cloned = self.taught(labelled)
        out = self.at(f"plan-{labelled}{name}")
        argv = ["--checkpoint", self.model, "--controller", own, "--policy", cloned, "--prior", self.at("prior")]
        clips = ["--index", self.at("index.parquet"), "--labels", self.labels]
        done(plan, *argv, *clips, "--out", out, "--set", f"plan.episodes={episodes}", *more)
        return {r.name: r for r in read_results(f"{out}/results.json").results}


def said(found: dict[str, Result], name: str) -> dict[str, float | None]:
    one = found[name]
    return {"value": round(one.value, 3), "low": one.low, "high": one.high}


def main(argv: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument("--out", type=Path, default=Path("runs/pusht"))
    made.add_argument("--simulated", type=int, help="episodes of the data (default: 2000; --quick: 300)")
    made.add_argument("--labelled", type=int, nargs="+", default=[100], help="labelled episodes (default: 100)")
    made.add_argument("--episodes", type=int, help="episodes in closed loop (default: 50; --quick: 4)")
    made.add_argument("--steps", type=int, help="training steps of the model")
    made.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="of planning (repeatable)")
    args = made.parse_args(argv)
    steps = args.steps or (150 if args.quick else None)
    recipe = ["--recipe", "pusht", *(["--set", f"train.steps={steps}"] if steps else [])]
    if args.quick:
        recipe += ["--set", "controller.train.steps=100", "--set", "policy.train.steps=100"]
        recipe += ["--set", "prior.train.steps=50", "--set", "train.checkpoint_every=150"]
    trial = Trial(args.out, args.simulated or (300 if args.quick else 2000), recipe)
    trial.data()
    trial.train()
    more = [part for one in args.set for part in ("--set", one)]
    episodes = args.episodes or (4 if args.quick else 50)
    curve = {}
    for labelled in args.labelled:
        found = trial.driven(labelled, episodes, *more)
        ways = ("success", "success_policy", "success_goal_idm")
        curve[labelled] = {name: said(found, name) for name in ways}
    names = {"success": "success", "success_true_actions": "success_true", "success_goal_idm": "success_goal_idm"}
    names |= {"success_random": "success_random", "success_no_action": "success_no_action"}
    names |= {"success_policy": "success_policy"}
    figures: dict[str, Any] = {key: round(found[name].value, 3) for key, name in names.items()}
    figures["success_low"], figures["success_high"] = found["success"].low, found["success"].high
    about = json.loads(Path(trial.at("pusht", "simulate.json")).read_text())
    figures |= {"labelled_episodes": args.labelled[-1], "over_labelled_episodes": curve, "data": about}
    finish("pusht", figures, PACKAGES)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
