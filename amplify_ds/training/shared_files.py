"""What another machine has made is looked for until it is seen.

NFS remembers for up to a minute that a name was absent, or which file it stood for. So a rank that does not find what
rank 0 has just written looks again, listing the directory in between, which makes the client ask its server.
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
SECONDS_BETWEEN_LOOKS = 0.2


def wait_for(path: Path, seconds: float = SECONDS) -> None:
    """Return when `path` is seen; AmplifyError if it is not within `seconds`."""
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
                f"{path}: rank 0 has made it, and after {seconds:g} s it is not seen on {socket.gethostname()}; all "
                "machines need the same directory at the same path"
            )
        with suppress(OSError):
            os.listdir(path.parent)
        time.sleep(SECONDS_BETWEEN_LOOKS)
