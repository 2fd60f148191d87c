"""Train the controller that maps real actions to a model's latent actions, and back, on labelled clips.

    lawm controller --checkpoint runs/mine --labels labels.parquet --out runs/mine-controller

Settings come from the checkpoint's own config. Run the same command again after an interruption: it goes on.
"""

import sys

from jobs._cli import base_parser, run_job
from jobs._run import add_data_arguments, beside, checkpoint_config, run_training


@run_job
def main(argv: list[str] | None = None) -> int:
    parser = base_parser("controller", __doc__, default_recipe=None)
    add_data_arguments(parser)
    parser.add_argument(
        "--checkpoint", required=True, metavar="URI", help="the latent action model: a run folder or a checkpoint in it"
    )
    parser.add_argument(
        "--out", metavar="URI", help="the run folder (default: that of the model, with -controller behind its name)"
    )
    parser.add_argument("--plain", action="store_true", help="train in this process, without Ray Train and Ray Data")
    args = parser.parse_args(argv)
    beside(args, "controller")
    return run_training(args, checkpoint_config(args), "controller", args.checkpoint)


if __name__ == "__main__":
    sys.exit(main())
