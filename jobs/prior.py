"""Train the prior p(z | s): which latent actions of a model are likely in a state, from its own clips, without labels.

    lawm prior --checkpoint runs/mine
    lawm plan --checkpoint runs/mine --controller runs/mine-controller --prior runs/mine-prior --set plan.over=prior

Settings come from the checkpoint's own config. Run the same command again after an interruption: it goes on.
"""

import sys

from jobs._cli import base_parser, run_job
from jobs._run import add_data_arguments, beside, checkpoint_config, run_training


@run_job
def main(argv: list[str] | None = None) -> int:
    parser = base_parser("prior", __doc__, default_recipe=None)
    add_data_arguments(parser)
    parser.add_argument(
        "--checkpoint", required=True, metavar="URI", help="the latent action model: a run folder or a checkpoint in it"
    )
    parser.add_argument(
        "--out", metavar="URI", help="the run folder (default: that of the model, with -prior behind its name)"
    )
    parser.add_argument("--plain", action="store_true", help="train in this process, without Ray Train and Ray Data")
    args = parser.parse_args(argv)
    beside(args, "prior")
    return run_training(args, checkpoint_config(args), "prior", args.checkpoint)


if __name__ == "__main__":
    sys.exit(main())
