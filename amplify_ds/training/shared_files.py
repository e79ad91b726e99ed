"""Wait for files that another machine has written to a shared file system.

NFS caches for up to a minute that a name was absent or which file it belonged to. A rank that does not find what rank 0
has just written therefore tries again, and lists the directory in between, which makes the client ask the server.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from amplify_ds.errors import AmplifyError

SECONDS = 90.0  # more than the 60 for which NFS keeps the attributes of a directory by default (acdirmax)
SECONDS_BETWEEN_TRIES = 0.2


def wait_for(path: Path, seconds: float = SECONDS) -> None:
    """Return as soon as `path` exists. Raises AmplifyError if it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            path.stat()
            return
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
        if time.monotonic() > deadline:
            raise AmplifyError(
                f"{path}: rank 0 has written it, but {socket.gethostname()} does not see it after {seconds:g} s; all "
                "machines need the same directory at the same path"
            )
        with suppress(OSError):
            os.listdir(path.parent)
        time.sleep(SECONDS_BETWEEN_TRIES)
