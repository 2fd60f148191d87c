"""Write the frozen encoder's states of an index's videos once, for every run that follows.

lawm encode --index index.parquet --out cache
lawm train --cache cache
"""

import sys

from jobs._cli import base_parser, describe, resolve_config, run_job, say
from jobs._run import add_data_arguments, counted, with_data
from lawm import storage
from lawm.config import LawmError


@run_job
def main(argv: list[str] | None = None) -> int:
    parser = base_parser("encode", __doc__)
    add_data_arguments(parser)
    parser.add_argument("--out", default="cache", metavar="URI", help="the cache folder (default: cache)")
    args = parser.parse_args(argv)
    config = resolve_config(args, with_data(resolve_config(args), args))
    if config.data.index is None:
        raise LawmError("no index: give --index URI (see `lawm index`)")
    storage.check_folder(args.out)

    from lawm.cluster.encode import chunks, encode_index, needs, whole_clips
    from lawm.cluster.session import start
    from lawm.data import read_index

    if args.dry_run:
        whole = whole_clips(config)
        index = read_index(config.data.index).usable()
        frames = sum(piece.frames for chunk in chunks(index, config.data.clip.fps, whole) for _, piece in chunk)
        describe(config, needs(config), None, frames=frames, videos=len(index), out=storage.absolute(args.out))
        return 0
    with start(config.cluster, needs=needs(config)), counted("encode") as show:
        report = encode_index(config, args.out, lambda done, total: show(done, total, "frames"))
    kept = f", {report.kept_parts} parts by an earlier run" if report.kept_parts else ""
    print(f"states of {report.frames} frames of {report.videos} videos in {storage.absolute(args.out)}{kept}")
    for key, reason in list(report.refused.items())[:10]:
        say(f"refused: {key}: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
