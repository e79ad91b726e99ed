"""TensorBoard events that never end a run: what cannot be written waits in memory, and is written when it can be.

Events are handed to the file at every `flush`. If that fails half way, on a full disk for example, the file is cut back
to its last whole event, one warning names it, and the next flush tries again with all that has been waiting. (The
writer of tensorboard writes in a thread, which ends for good at the first failure.)
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar, text

MOST_WAITING = 2**26  # bytes in memory, about a million points; beyond that the oldest are dropped
_VERSION = "brain.Event:2"  # what TensorBoard expects in the first event of a file


class Events:
    """One new file of events in `folder`, to be used in a `with` block. say: shows a line to the user.

    replaced_from: events of this step and later ones in older files are replaced; None: there are none.
    """

    def __init__(self, folder: Path, replaced_from: int | None, say: Callable[[str], None]):
        now = time.time()
        self.path = folder / f"events.out.tfevents.{int(now)}.{socket.gethostname()}.{os.getpid()}"
        self._say = say
        self._file: io.FileIO | None = None
        self._waiting: deque[bytes] = deque()
        self._bytes = self._dropped = 0  # waiting; dropped: events
        self._failing = False
        self._add(Event(wall_time=now, file_version=_VERSION))
        if replaced_from is not None:
            start = SessionLog(status=SessionLog.START)
            self._add(Event(wall_time=now, step=replaced_from, session_log=start))

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *error) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self._add(Event(wall_time=time.time(), step=step, summary=scalar(tag, value)))

    def add_text(self, tag: str, content: str, step: int) -> None:
        self._add(Event(wall_time=time.time(), step=step, summary=text(tag, content)))

    def flush(self) -> None:
        """Hand all events to the file; a failure is a warning."""
        try:
            self._write()
        except OSError as error:
            if not self._failing:
                self._say(
                    f"warning: {self.path}: TensorBoard events cannot be written ({error.strerror}). Training goes on; "
                    "they are kept in memory, and writing is tried again at each log."
                )
            self._failing = True
            return
        if self._failing:
            lost = f", but the oldest {self._dropped:,} were dropped" if self._dropped else ""
            self._say(f"{self.path}: TensorBoard events are written again{lost}")
        self._failing, self._dropped = False, 0

    def _add(self, event: Event) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._waiting.append(record.getvalue())
        self._bytes += record.tell()
        while self._bytes > MOST_WAITING:
            self._bytes -= len(self._waiting.popleft())
            self._dropped += 1

    def _write(self) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab", buffering=0)
        whole = self._file.tell()
        content = memoryview(b"".join(self._waiting))
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError:
            self._file.truncate(whole)
            self._file.seek(whole)
            raise
        self._waiting.clear()
        self._bytes = 0


class NoEvents:
    """What the other ranks log to."""

    def __enter__(self) -> NoEvents:
        return self

    def __exit__(self, *error) -> None:
        return None

    def __getattr__(self, name):
        return lambda *args, **kwargs: None
