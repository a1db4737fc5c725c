"""Names of checkpoints, fit for showing."""

import os
from pathlib import Path

from edgeblt.export.checkpoints.checkpoint import Checkpoint
from edgeblt.export.hub.repository import repository_of
from edgeblt.printable import printable


def origin(checkpoint: Checkpoint) -> str:
    """The name of the checkpoint that this one was compressed from, or its own."""
    return checkpoint.record.source if checkpoint.record else checkpoint_name(checkpoint)


def checkpoint_name(checkpoint: Checkpoint) -> str:
    """Its id on the hub, or the directory's own name, whichever way that was given; fit for showing."""
    path = Path(os.path.abspath(checkpoint.path))
    return printable(repository_of(path) or path.name)
