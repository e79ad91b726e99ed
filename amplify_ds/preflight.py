"""Can these machines train together? `bash launch/preflight.sh HOSTFILE [options of amplify_ds.train]`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from amplify_ds import bars, train
from amplify_ds.cluster.hostfile import Host, read_hostfile
from amplify_ds.cluster.judge import CHECKS, Finding
from amplify_ds.cluster.launcher import PORT_WITHOUT_SSH
from amplify_ds.cluster.preflight import Asked, Found, Preflight
from amplify_ds.errors import AmplifyError, command
from amplify_ds.training import ds_config

DESCRIPTION = """\
Check every machine of a hostfile before a run, within a minute: a table with a line per machine, then what failed and
how to fix it. Exit code 0 if nothing failed.

  bash launch/preflight.sh hostfile                                          the machines alone
  bash launch/preflight.sh hostfile --recipe 120M --data.train shards/train \\
    --output runs/120M                                                       … and whether they can train this

Checks:
"""
OF_THE_RUN = ("shards", "output", "disk", "step")


def main() -> int:
    checks = "".join(f"  {name:<12}{text}\n" for name, text in CHECKS.items())
    parser = train.Parser(
        prog="bash launch/preflight.sh",
        usage="%(prog)s HOSTFILE [options] [options of amplify_ds.train]",
        description=DESCRIPTION + checks,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("hostfile", type=Path, metavar="HOSTFILE", help="lines 'NAME slots=N', see launch/hostfile.example")
    add("--master_addr", metavar="NAME", help="where the ranks meet (default: the hostfile's first machine)")
    add("--master_port", type=int, metavar="PORT", help="and at which port (default: one that is free there)")
    add("--srun", action="store_true", help="inside a SLURM job: reach machines with srun instead of ssh")
    add("--seconds", type=float, default=60, metavar="X", help="time for all of it (default %(default)g)")
    options, training = parser.parse_known_args()
    if options.seconds < 20:
        raise AmplifyError(f"--seconds must be 20 or more, found {options.seconds:g}")
    hosts = read_hostfile(options.hostfile)
    with bars.bar(total=3, bar_format="{desc}", leave=False) as bar:
        found = Preflight(_asked(hosts, options, training), os.environ, bar.set_description_str).check()
    print(table(hosts, found))
    for note in found.notes:
        print(note)
    if not training:
        print(f"left out: {', '.join(OF_THE_RUN)} (give the options of amplify_ds.train)")
    if found.failures():
        print(f"\n{describe(found.failures())}", file=sys.stderr)
        return 1
    words = shlex.join(training) or "--recipe 120M --data.train SHARDS --output RUN"
    print(f"nothing failed. Next: bash launch/train.sh --hostfile {shlex.quote(str(options.hostfile))} -- {words}")
    return 0


def _asked(hosts: list[Host], options: argparse.Namespace, training: Sequence[str]) -> Asked:
    address = options.master_addr or hosts[0].name.rpartition("@")[2]
    port = options.master_port or (PORT_WITHOUT_SSH if options.srun else None)
    asked = (hosts, address, port, options.seconds, "srun" if options.srun else None)
    if not training:
        return Asked(*asked)
    arguments, run = train.parse(list(training))
    return Asked(*asked, run, ds_config.read(arguments.deepspeed_config), arguments.output)


def describe(failures: list[Finding]) -> str:
    """What failed, once for all machines that say the same."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for host, *said in failures:
        alike.setdefault(tuple(said), []).append(host)
    lines = [
        f"  {check} on {', '.join(names)}: {text}\n    -> {remedy}" for (check, text, remedy), names in alike.items()
    ]
    return "\n".join([f"{len(failures)} checks failed:", *lines])


def table(hosts: list[Host], found: Found) -> str:
    """A line per machine; - is what was not looked at."""
    cells = {(f.host, f.check): "FAILED" if f.remedy else f.text for f in reversed(found.findings)}
    cells |= {(f.host, f.check): "FAILED" for f in found.failures()}
    rows = [["host", *CHECKS]]
    rows += [[host.name, *(cells.get((host.name, check), "-") for check in CHECKS)] for host in hosts]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


if __name__ == "__main__":
    command(main)
