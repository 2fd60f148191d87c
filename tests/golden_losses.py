"""Ten losses of the tiny recipe per bottleneck kind. Rewrite tests/golden/tiny.json, after a change that is
meant to change them, with

    OMP_NUM_THREADS=1 python tests/golden_losses.py --write
"""

import json
import sys
from pathlib import Path

from small_runs import BOTTLENECKS, losses_of, tiny_kind

GOLDEN = Path(__file__).parent / "golden" / "tiny.json"


def ten_losses(kind: str) -> list[float]:
    config = tiny_kind(kind, train__steps=10, train__log_every=1, train__checkpoint_every=10)
    return [found["loss"] for found in losses_of(config)]


if __name__ == "__main__":
    losses = {kind: [round(loss, 7) for loss in ten_losses(kind)] for kind in BOTTLENECKS}
    said = json.dumps(losses, indent=1)
    if "--write" in sys.argv:
        GOLDEN.write_text(said + "\n", encoding="utf-8")
    print(said)
