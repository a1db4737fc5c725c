"""Printable names of checkpoints."""

import os
from pathlib import Path

from edgeblt.export.checkpoints.checkpoint import Checkpoint
from edgeblt.export.hub.repository import repository_of
from edgeblt.printable import printable


def origin(checkpoint: Checkpoint) -> str:
    """The name of the checkpoint that this one was compressed from, or its own."""
    return checkpoint.record.source if checkpoint.record else checkpoint_name(checkpoint)


def checkpoint_name(checkpoint: Checkpoint) -> str:
    """The checkpoint's id on the hub or the name of its directory, printable."""
    path = Path(os.path.abspath(checkpoint.path))
    return printable(repository_of(path) or path.name)
