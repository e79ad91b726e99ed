"""Read a file at an http(s) address as a stream over one connection. A broken connection is not resumed: the error
message gives the command that downloads to a file and can resume."""

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
    """The file at an http(s) address, requested at the first read. Reading raises AmplifyError unless all of it
    arrives."""

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
            headers = {"Accept-Encoding": "identity"}  # not compressed by the server, so that it sends the length
            with requests.get(self.address, headers=headers, stream=True, timeout=_TIMEOUT) as response:
                response.raise_for_status()
                yield from response.iter_content(_BLOCK)
        except requests.RequestException as error:
            curl = command_line("curl", "--fail", "--location", "--continue-at", "-", "--remote-name", self.address)
            raise AmplifyError(
                f"{self.address} could not be read to its end: {first_line(error)}. Check the address and the network. "
                "If the connection keeps breaking, download the file first with this command, which resumes when run "
                f"again:\n  {curl}"
            ) from error
