"""Train the decoder from a model's states to pixels, for pictures.

    lawm decoder --checkpoint runs/mine --out runs/mine-decoder

Settings come from the checkpoint's own config. Run the same command again after an interruption: it goes on.
"""

import sys

from jobs._cli import base_parser, run_job
from jobs._run import add_data_arguments, beside, checkpoint_config, run_training


@run_job
def main(argv: list[str] | None = None) -> int:
    parser = base_parser("decoder", __doc__, default_recipe=None)
    add_data_arguments(parser)
    parser.add_argument(
        "--checkpoint", required=True, metavar="URI", help="the latent action model: a run folder or a checkpoint in it"
    )
    parser.add_argument(
        "--out", metavar="URI", help="the run folder (default: that of the model, with -decoder behind its name)"
    )
    parser.add_argument("--plain", action="store_true", help="train in this process, without Ray Train and Ray Data")
    args = parser.parse_args(argv)
    beside(args, "decoder")
    return run_training(args, checkpoint_config(args), "decoder", args.checkpoint)


if __name__ == "__main__":
    sys.exit(main())
