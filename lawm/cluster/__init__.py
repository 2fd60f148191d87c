"""Everything that Ray does for lawm, one file per thing; the only package that imports ray."""

import getpass
import os
import tempfile
from pathlib import Path


def _somewhere_to_be_at_home() -> None:
    """Ray Train looks for the home folder when it is imported, and torch for the user's name when it compiles: there
    may be neither, under a user id that the machine does not know. What is set is inherited by Ray's processes."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.gettempdir()
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"uid{os.getuid()}"


_somewhere_to_be_at_home()
