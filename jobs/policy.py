"""Train goal-conditioned behaviour cloning on labelled clips: a baseline of planning that needs no world model.

    lawm policy --checkpoint runs/mine --labels labels.parquet
    lawm plan --checkpoint runs/mine --controller runs/mine-controller --policy runs/mine-policy

It sees the states of the checkpoint's encoder. Settings come from the checkpoint's own config. Run the same command
again after an interruption: it goes on.
"""

import sys

from jobs._cli import base_parser, run_job
from jobs._run import add_data_arguments, beside, checkpoint_config, run_training


@run_job
def main(argv: list[str] | None = None) -> int:
    parser = base_parser("policy", __doc__, default_recipe=None)
    add_data_arguments(parser)
    parser.add_argument(
        "--checkpoint", required=True, metavar="URI", help="the latent action model: a run folder or a checkpoint in it"
    )
    parser.add_argument(
        "--out", metavar="URI", help="the run folder (default: that of the model, with -policy behind its name)"
    )
    parser.add_argument("--plain", action="store_true", help="train in this process, without Ray Train and Ray Data")
    args = parser.parse_args(argv)
    beside(args, "policy")
    return run_training(args, checkpoint_config(args), "policy", args.checkpoint)


if __name__ == "__main__":
    sys.exit(main())
