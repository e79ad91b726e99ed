"""Can these machines train together? `bash launch/preflight.sh HOSTFILE [options of amplify_ds.train]`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from amplify_ds import bars, train
from amplify_ds.cluster import slurm
from amplify_ds.cluster.checks import CHECKS, Finding
from amplify_ds.cluster.hostfile import Host, read_hostfile
from amplify_ds.cluster.node_checks import Asked, Found, Preflight
from amplify_ds.errors import AmplifyError, command
from amplify_ds.training import ds_config

DESCRIPTION = """\
Check every machine of a hostfile before a run, within a minute: a table with a line per machine, then what failed and
how to fix it. Exit code 0 if nothing failed.

  bash launch/preflight.sh hostfile                                          the machines alone
  bash launch/preflight.sh hostfile --recipe 120M --data.train shards/train \\
    --output runs/120M                                                       … and whether they can train this
  bash launch/preflight.sh --slurm …                                         the nodes of a SLURM job, from inside it

Checks:
"""
SECONDS = 60
OF_THE_RUN = ("shards", "output", "disk", "step")


def main() -> int:
    checks = "".join(f"  {name:<12}{text}\n" for name, text in CHECKS.items())
    parser = train.Parser(
        prog="bash launch/preflight.sh",
        usage="%(prog)s HOSTFILE | --slurm [options] [options of amplify_ds.train]",
        description=DESCRIPTION + checks,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("hostfile", type=Path, nargs="?", metavar="HOSTFILE", help="lines 'NAME slots=N', see launch/hostfile.example")
    add("--slurm", action="store_true", help="the nodes of the SLURM job that this runs in, through srun")
    add("--master_addr", metavar="NAME", help="where the ranks meet (default: the first machine)")
    add("--master_port", type=int, metavar="PORT", help="and at which port (default: one that is free there)")
    add("--seconds", type=float, default=SECONDS, metavar="X", help="time for all of it (default %(default)g)")
    options, training = parser.parse_known_args()
    if options.seconds < 20:
        raise AmplifyError(f"--seconds must be 20 or more, found {options.seconds:g}")
    if options.slurm == bool(options.hostfile):
        raise AmplifyError("give a HOSTFILE, or --slurm inside a SLURM job")
    job = slurm.current_job() if options.slurm else None
    hosts = job.hosts if job else read_hostfile(options.hostfile)
    code = check(hosts, options.master_addr, options.master_port, job, training, options.seconds)
    if code == 0 and not job:
        following = shlex.join(training) or "--recipe 120M --data.train SHARDS --output RUN"
        print(f"Next: bash launch/train.sh --hostfile {shlex.quote(str(options.hostfile))} -- {following}")
    return code


def check(
    hosts: list[Host],
    address: str | None,
    port: int | None,
    job: slurm.SlurmJob | None,
    training: Sequence[str],
    seconds: float = SECONDS,
) -> int:
    """Check `hosts`, print what was found, and return the exit code: 1 if something failed.

    address, port: where the ranks will meet, None for the default. job: the SLURM job that reaches the hosts; None for
    ssh. training: options of amplify_ds.train, [] for the machines alone.
    """
    asked = Asked(
        hosts,
        address or hosts[0].name.rpartition("@")[2],
        port or (job.port if job else None),
        seconds,
        "srun" if job else None,
    )
    if training:
        arguments, run = train.parse(list(training))
        asked = replace(asked, run=run, zero=ds_config.read(arguments.deepspeed_config), output=arguments.output)
    with bars.bar(total=3, bar_format="{desc}", leave=False) as bar:
        found = Preflight(asked, os.environ, bar.set_description_str).check()
    print(table(hosts, found))
    for note in found.notes:
        print(note)
    if not training:
        print(f"left out: {', '.join(OF_THE_RUN)} (give the options of amplify_ds.train)")
    if found.failures():
        sys.stdout.flush()  # the table belongs above, also where both streams go into one file
        print(f"\n{describe(found.failures())}", file=sys.stderr)
        return 1
    print("nothing failed.")
    return 0


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
