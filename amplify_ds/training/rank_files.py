"""RUN/.ranks/rank-00003.json, the record of each rank, and RUN/stalled.json, the report of the watchdog.

Records are written in place, not replaced by renaming, because NFS shows a file's new content when it is opened.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from amplify_ds.training import process_table

FOLDER, REPORT = ".ranks", "stalled.json"
Record = dict[str, Any]


def identity(rank: int, job: int) -> Record:
    """Return the part of this rank's record that stays the same."""
    return {
        "job": job,
        "rank": rank,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "launcher": os.getppid(),
        "started": process_table.started(os.getpid()),
    }


def write(run: Path, record: Record) -> None:
    """Write a rank's record; does nothing if that fails, because the training loop reports a full disk."""
    with suppress(OSError):
        _path(run, record["rank"]).write_text(json.dumps(record), encoding="utf-8")


def read(run: Path, rank: int) -> Record:
    """Return the last record of a rank, of any start; {} if there is none."""
    return _read(_path(run, rank))


def jobs(run: Path) -> set[tuple[int, str]]:
    """Return (job, phase) of every rank of any start that has written a record."""
    records: list[Record] = []
    with suppress(OSError):  # the file server may be away
        records = [_read(path) for path in (run / FOLDER).glob("rank-*.json")]
    return {(record["job"], record["phase"]) for record in records if "job" in record and "phase" in record}


def read_all(run: Path, world_size: int, job: int) -> dict[int, Record]:
    """Return the records of this start, {rank: record}."""
    records = {rank: read(run, rank) for rank in range(world_size)}
    return {rank: record for rank, record in records.items() if record.get("job") == job}


def reported(run: Path, job: int) -> bool:
    """Return whether a rank of this start has written the report."""
    return _read(run / REPORT).get("job") == job


def report(run: Path, content: Record) -> bool:
    """Write the report unless another rank has written one; return whether this rank should print it."""
    temporary = run / f".{REPORT}.{content['found_by']}"
    try:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        os.link(temporary, run / REPORT)
    except FileExistsError:
        return False
    except OSError:  # no space or no links: better printed by several ranks than by none
        return True
    finally:
        temporary.unlink(missing_ok=True)
    return True


def state(record: Record) -> str:
    """Return the kernel's state of a rank's process as text; "" if it is on another machine."""
    if record["host"] != socket.gethostname():
        return ""
    process = _process(record)
    return process.describe() if process else "gone"


def kill(record: Record) -> None:
    """Kill a rank's process, if it is on this machine and has the same launcher as this process."""
    if record["host"] == socket.gethostname() and (process := _process(record)) and process.parent == os.getppid():
        with suppress(OSError):
            os.kill(record["pid"], signal.SIGKILL)


def _process(record: Record) -> process_table.Process | None:
    """Return the process of a rank on this machine; None if it has ended, even if its id is used again."""
    process = process_table.process_info(record["pid"])
    return process if process_table.started(record["pid"]) == record["started"] else None


def _path(run: Path, rank: int) -> Path:
    return run / FOLDER / f"rank-{rank:05d}.json"


def _read(path: Path) -> Record:
    """Return the content, {} if there is no file. Tries again if the file is being written."""
    for _ in range(5):
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            return {}
        except ValueError:
            time.sleep(0.02)
    return {}
