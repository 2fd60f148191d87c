"""Train a latent action world model on videos, an index of them, or a state cache.

    lawm train --videos FOLDER --out runs/mine
    lawm train --recipe paper_sparse --index s3://bucket/index.parquet --out s3://bucket/runs/sparse

Several coefficients in one run, on clips that are decoded and encoded once; each as in a run of its own:

    lawm train --cache cache --out runs/betas --member model.bottleneck.beta=1e-5 --member model.bottleneck.beta=1e-3

Run the same command again after an interruption: it goes on from the newest checkpoint.
"""

import sys

from jobs._cli import apply_settings, base_parser, resolve_config, run_job, split_settings
from jobs._run import add_data_arguments, run_training, with_data
from lawm.config import LawmError


@run_job
def main(argv: list[str] | None = None) -> int:
    parser = base_parser("train", __doc__)
    add_data_arguments(parser)
    parser.add_argument(
        "--videos",
        nargs="+",
        default=[],
        metavar="SOURCE",
        help="folders, files, tars or s3:// prefixes, indexed first",
    )
    parser.add_argument("--out", default="runs/train", metavar="URI", help="the run folder (default: runs/train)")
    parser.add_argument(
        "--member",
        action="append",
        default=[],
        dest="members",
        metavar="SETTINGS",
        help="one more model, FIELD=VALUE of model and optimizer (several: in quotes), trained into OUT/member-N",
    )
    parser.add_argument("--plain", action="store_true", help="train in this process, without Ray Train and Ray Data")
    args = parser.parse_args(argv)
    config = resolve_config(args, with_data(resolve_config(args), args))
    if not (args.videos or config.data.given):
        raise LawmError("nothing to train on: give --videos FOLDER, --index URI, --cache URI or --mix URI=WEIGHT")
    members = [apply_settings(config, split_settings(settings), "--member") for settings in args.members]
    return run_training(args, config, "latent_action", None, args.videos, members)


if __name__ == "__main__":
    sys.exit(main())
