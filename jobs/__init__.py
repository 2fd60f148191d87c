"""What a person runs: each module is one command, `lawm NAME ...` or `python -m jobs.NAME ...`."""

import os
import sys


def _import_from_elsewhere() -> None:
    """`python -m jobs` puts the working folder first among the places to import from, where an `av.py` or a `lawm` of
    the user's would be taken for the module of that name. It is needed in a checkout only."""
    here = os.path.dirname(os.path.dirname(__file__))
    try:
        working = os.getcwd()
    except FileNotFoundError:  # it is gone
        working = ""
    if sys.path and sys.path[0] in ("", working) and working != here:
        del sys.path[0]


_import_from_elsewhere()
