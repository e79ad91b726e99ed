"""TensorBoard events whose failures never end a run: events that cannot be written are kept in memory and retried.

Events are written at every `flush`. If that fails half way, for example on a full disk, the file is truncated to its
last complete event, one warning is printed, and the next flush tries again with all events that are waiting. (The
writer of tensorboard uses a thread, which ends for good at the first failure.)
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar, text

MOST_WAITING = 2**26  # bytes in memory, about a million points; if there are more, the oldest are dropped
_VERSION = "brain.Event:2"  # what TensorBoard expects in the first event of a file


class Events:
    """A new file of events in `folder`, used in a `with` block. print_line: prints a line for the user.

    replaced_from: events in older files from this step on are replaced; None if there are none.
    """

    def __init__(self, folder: Path, replaced_from: int | None, print_line: Callable[[str], None]):
        now = time.time()
        self.path = folder / f"events.out.tfevents.{int(now)}.{socket.gethostname()}.{os.getpid()}"
        self._print_line = print_line
        self._file: io.FileIO | None = None
        self._waiting: deque[bytes] = deque()
        self._bytes = self._dropped = 0  # bytes waiting, events dropped
        self._complete = 0  # bytes of the file that are complete events
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
            with suppress(OSError):
                self._file.close()

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self._add(Event(wall_time=time.time(), step=step, summary=scalar(tag, value)))

    def add_text(self, tag: str, content: str, step: int) -> None:
        self._add(Event(wall_time=time.time(), step=step, summary=text(tag, content)))

    def flush(self) -> None:
        """Write all waiting events to the file. Prints a warning if that fails."""
        try:
            self._write()
        except OSError as error:
            if not self._failing:
                self._print_line(
                    f"warning: {self.path}: TensorBoard events cannot be written ({error.strerror}). Training "
                    "continues; the events are kept in memory, and each log tries again."
                )
            self._failing = True
            return
        if self._failing:
            lost = f", but the oldest {self._dropped:,} events were dropped" if self._dropped else ""
            self._print_line(f"{self.path}: TensorBoard events can be written again{lost}")
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
        content = memoryview(b"".join(self._waiting))
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "ab", buffering=0)
                self._complete = min(self._complete, self._file.tell())
                self._file.truncate(self._complete)
            while content:
                content = content[self._file.write(content) :]
        except OSError:
            if self._file is not None:  # opened again next time: after an outage of a file server this one may be dead
                with suppress(OSError):
                    self._file.truncate(self._complete)
                with suppress(OSError):
                    self._file.close()
                self._file = None
            raise
        self._complete = self._file.tell()
        self._waiting.clear()
        self._bytes = 0


class NoEvents:
    """Ignores all events: for the ranks that do not log."""

    def __enter__(self) -> NoEvents:
        return self

    def __exit__(self, *error) -> None:
        return None

    def __getattr__(self, name):
        return lambda *args, **kwargs: None
