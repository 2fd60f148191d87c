"""Transcode the videos of an index once into training shards, which decode many times as fast.

    lawm prepare index.parquet --out prepared
    lawm train --index prepared/index.parquet --out runs/mine

Run the same command again after an interruption: it makes the shards that are missing.
"""

import sys

from jobs._cli import base_parser, describe, resolve_config, run_job
from jobs._run import counted
from lawm import storage
from lawm.config import LawmError, override


@run_job
def main(argv: list[str] | None = None) -> int:
    parser = base_parser("prepare", __doc__)
    parser.add_argument("index", metavar="INDEX", help="an index written by `lawm index`")
    parser.add_argument("--out", default="prepared", metavar="URI", help="the folder of the shards (default: prepared)")
    parser.add_argument("--fps", type=float, metavar="N", help="frames a second at most (default: twice the clips')")
    parser.add_argument("--short", type=int, metavar="N", help="shorter side in pixels (default: what the clips need)")
    parser.add_argument("--gop", type=int, default=8, metavar="N", help="frames between key frames (default: 8)")
    parser.add_argument("--crf", type=int, default=20, metavar="N", help="x264's rate factor (default: 20)")
    args = parser.parse_args(argv)
    storage.check_folder(args.out)

    from lawm.cluster.prepare import claim, prepare, prepare_needs
    from lawm.cluster.session import start
    from lawm.data import PrepareSpec, planned_shards, prepare_settings, read_index

    config = override(resolve_config(args), "data.index", storage.absolute(args.index))
    clip = config.data.clip
    even = clip.short_side + clip.short_side % 2  # as H.264's sides are
    short = args.short if args.short is not None else even
    spec = PrepareSpec(args.fps if args.fps is not None else 2 * clip.fps, short, args.gop, args.crf)
    spec.check(clip)
    index = read_index(args.index)
    if not len(index.usable()):
        raise LawmError(f"{args.index}: none of its {len(index)} videos is usable")
    out = storage.absolute(args.out)
    needs = prepare_needs(config)
    if args.dry_run:
        if storage.exists(storage.join(out, "prepare.json")):
            claim(out, "prepare.json", prepare_settings(index, clip, spec))
        more = {"videos": len(index.usable()), "shards": len(planned_shards(index)), "out": out, "prepare": vars(spec)}
        describe(config, needs, "as in the index", **more)
        return 0
    with start(config.cluster, needs=needs), counted("prepare") as show:
        report = prepare(config, out, spec, show)
    print(
        f"{report.usable} of {report.videos} videos, {report.hours:.2f} hours, {report.bytes / 2**20:.0f} MiB; "
        f"{report.kept_shards} shards were there already"
    )
    for reason, count in report.reasons.items():
        print(f"refused: {reason} {count}")
    print(f"index: {report.uri}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
