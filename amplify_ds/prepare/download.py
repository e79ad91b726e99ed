"""A file at an http(s) address as a stream. One that breaks off is taken up again where it ended; a server that would
go on with another file is refused."""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING

from amplify_ds.errors import AmplifyError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from requests import Response

ATTEMPTS = 6  # at going on with a broken download, in a row and without a single byte; they wait 1, 2, 4 … seconds
_TIMEOUT = 30.0
_SKIPPED = 2**20  # bytes at a time


class Http(io.RawIOBase):
    """The file at an http(s) address, read once from beginning to end over as many connections as that takes."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.size: int | None = None
        self._offset = 0
        self._version = ""  # what the server says of this version of the file
        self._response: Response | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        from requests import RequestException
        from urllib3.exceptions import HTTPError

        view = memoryview(buffer)
        for attempt in range(ATTEMPTS):
            try:
                if self._response is None:
                    self._response = self._connect()
                data = self._response.raw.read(len(view))
                if data or self.size in (None, self._offset):
                    view[: len(data)] = data
                    self._offset += len(data)
                    return len(data)
                failure = f"it ended after {self._offset:,} of {self.size:,} bytes"
            except (RequestException, HTTPError, OSError) as error:
                failure = str(error)
            self._response = None
            if attempt < ATTEMPTS - 1:
                time.sleep(2**attempt)
        raise AmplifyError(
            f"{self.address} broke off at byte {self._offset:,} and could not be continued in {ATTEMPTS} attempts "
            f"({failure}). Check the address and the network, and run the same command again."
        )

    def _connect(self) -> Response:
        """Ask for the bytes from `_offset` on."""
        import requests

        headers = {"Accept-Encoding": "identity", "Range": f"bytes={self._offset}-"}
        response = requests.get(self.address, headers=headers, stream=True, timeout=_TIMEOUT)
        if response.status_code == 416 and self._offset == 0:  # no byte 0: an empty file
            raise AmplifyError(f"{self.address} is empty, expected a FASTA file.")
        if 400 <= response.status_code < 500 and response.status_code not in (408, 429):
            raise AmplifyError(f"{self.address}: the server says {response.status_code} {response.reason}.")
        response.raise_for_status()
        resumed = response.status_code == 206
        length = response.headers.get("Content-Length")
        size = None if length is None else int(length) + (self._offset if resumed else 0)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if self._offset and (size, version) != (self.size, self._version):
            raise AmplifyError(f"{self.address} was replaced by another file while it was read. Start again.")
        self.size, self._version = size, version
        left = 0 if resumed else self._offset  # a server that knows no ranges begins again
        while left:
            skipped = response.raw.read(min(left, _SKIPPED))
            if not skipped:
                raise OSError("the connection ended")
            left -= len(skipped)
        return response
