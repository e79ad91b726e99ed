"""RUN/.ranks/rank-00003.json, what each rank writes of itself, and RUN/stalled.json, what one of them found.

Nothing is replaced by renaming: a record is written in place, so that NFS shows what is new when it is opened.
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
    """The part of a rank's record that stays the same."""
    own = {"job": job, "rank": rank, "host": socket.gethostname(), "pid": os.getpid()}
    return own | {"launcher": os.getppid(), "started": process_table.started(os.getpid())}


def write(run: Path, record: Record) -> None:
    with suppress(OSError):  # a full disk is for the loop to find
        _path(run, record["rank"]).write_text(json.dumps(record), encoding="utf-8")


def read(run: Path, rank: int) -> Record:
    """What a rank of any start last wrote; {} if nothing."""
    return _read(_path(run, rank))


def read_all(run: Path, world_size: int, job: int) -> dict[int, Record]:
    """The records of this start, by rank."""
    found = {rank: read(run, rank) for rank in range(world_size)}
    return {rank: record for rank, record in found.items() if record.get("job") == job}


def reported(run: Path, job: int) -> bool:
    return _read(run / REPORT).get("job") == job


def report(run: Path, content: Record) -> bool:
    """Write the report unless another rank has; True when this rank did."""
    own = run / f".{REPORT}.{content['found_by']}"
    try:
        own.write_text(json.dumps(content, indent=1), encoding="utf-8")
        os.link(own, run / REPORT)
    except FileExistsError:
        return False
    except OSError:  # no room, no links: then it is said twice rather than never
        return True
    finally:
        own.unlink(missing_ok=True)
    return True


def state(record: Record) -> str:
    """What the kernel says of a rank's process, when it is on this machine, else nothing."""
    if record["host"] != socket.gethostname():
        return ""
    process = _process(record)
    return process.describe() if process else "gone"


def kill(record: Record) -> None:
    """End a rank's process, if it is one of this machine and of this process's launcher."""
    if record["host"] == socket.gethostname() and (process := _process(record)) and process.parent == os.getppid():
        with suppress(OSError):
            os.kill(record["pid"], signal.SIGKILL)


def _process(record: Record) -> process_table.Process | None:
    """Of a rank on this machine; None when it has ended, whatever has its number now."""
    process = process_table.look_at(record["pid"])
    return process if process_table.started(record["pid"]) == record["started"] else None


def _path(run: Path, rank: int) -> Path:
    return run / FOLDER / f"rank-{rank:05d}.json"


def _read(path: Path) -> Record:
    """{} if it is not there; a reader that comes in between tries again."""
    for _ in range(5):
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            return {}
        except ValueError:
            time.sleep(0.02)
    return {}
