"""A file at an http(s) address as a stream over one connection, which is not taken up again when it breaks off: what
downloads to a file does that (curl, wget), and the message says how."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from amplify_ds.errors import AmplifyError, first_line
from amplify_ds.shell import command_line

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_TIMEOUT = 30.0  # seconds without a byte
_BLOCK = 2**18


class Http(io.RawIOBase):
    """The file at an http(s) address, asked for at the first read. Reading raises AmplifyError if it does not come
    whole."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._blocks, self._left = self._receive(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view, block = memoryview(buffer), self._left or next(self._blocks, b"")
        data, self._left = block[: len(view)], block[len(view) :]
        view[: len(data)] = data
        return len(data)

    def _receive(self) -> Iterator[bytes]:
        import requests

        try:
            whole = {"Accept-Encoding": "identity"}  # as the file is, so that a length is given
            with requests.get(self.address, headers=whole, stream=True, timeout=_TIMEOUT) as response:
                response.raise_for_status()
                yield from response.iter_content(_BLOCK)
        except requests.RequestException as error:
            by_hand = command_line("curl", "--fail", "--location", "--continue-at", "-", "--remote-name", self.address)
            raise AmplifyError(
                f"{self.address} could not be read to its end: {first_line(error)}. Check the address and the network. "
                "If the connection breaks off, download the file first; run again, this command continues where it "
                f"ended:\n  {by_hand}"
            ) from error
