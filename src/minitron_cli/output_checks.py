"""Outputs of commands: checked before the work that makes them."""

import os
from pathlib import Path

from minitron_core.errors import Denied, MinitronError, NotFound


def refuse_existing(path: Path, force: bool) -> None:
    """Stop before hours of work if the result could not be put where it belongs."""
    if path.exists() and not force:
        raise MinitronError(f"{path} exists", "--force replaces it; -o names another file")
    folder = path.parent
    if not folder.is_dir():
        raise NotFound(f"the folder {folder} does not exist", "create it first")
    if not os.access(folder, os.W_OK):
        raise Denied(f"the folder {folder} is not writable", "choose another place with -o")
