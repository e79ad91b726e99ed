"""Check whether machines can train together: `bash launch/preflight.sh HOSTFILE [options of amplify_ds.train]`."""

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
from amplify_ds.cluster.node_checks import Preflight, PreflightReport, PreflightRequest
from amplify_ds.errors import AmplifyError, command
from amplify_ds.training import ds_config

DESCRIPTION = """\
Check every machine of a hostfile before a run, within a minute. Prints a table with one line per machine, then the
failures and how to fix them. Exit code 0 if nothing failed.

  bash launch/preflight.sh hostfile                                          the machines alone
  bash launch/preflight.sh hostfile --recipe 120M --data.train shards/train \\
    --output runs/120M                                                       the machines for this run
  bash launch/preflight.sh --slurm …                                         the nodes of the SLURM job it runs in

Checks:
"""
SECONDS = 60
CHECKS_OF_A_RUN = ("shards", "output", "disk", "step")


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
    add("--slurm", action="store_true", help="check the nodes of the SLURM job that this runs in, through srun")
    add("--master_addr", metavar="NAME", help="address at which the ranks meet (default: the first machine)")
    add(
        "--master_port", type=int, metavar="PORT", help="port at which the ranks meet (default: one that is free there)"
    )
    add("--seconds", type=float, default=SECONDS, metavar="X", help="time for all checks (default %(default)g)")
    options, training = parser.parse_known_args()
    if options.seconds < 20:
        raise AmplifyError(f"--seconds must be 20 or more, found {options.seconds:g}")
    if options.slurm == bool(options.hostfile):
        raise AmplifyError("give a HOSTFILE, or --slurm inside a SLURM job")
    job = slurm.current_job() if options.slurm else None
    hosts = job.hosts if job else read_hostfile(options.hostfile)
    code = check(hosts, options.master_addr, options.master_port, job, training, options.seconds)
    if code == 0 and not job:
        arguments = shlex.join(training) or "--recipe 120M --data.train SHARDS --output RUN"
        print(f"Next: bash launch/train.sh --hostfile {shlex.quote(str(options.hostfile))} -- {arguments}")
    return code


def check(
    hosts: list[Host],
    address: str | None,
    port: int | None,
    job: slurm.SlurmJob | None,
    training: Sequence[str],
    seconds: float = SECONDS,
) -> int:
    """Check `hosts`, print the results, and return the exit code: 1 if a check failed.

    address, port: where the ranks will meet, None for the default. job: the SLURM job whose srun reaches the hosts,
    None for ssh. training: options of amplify_ds.train, [] for the machines alone.
    """
    request = PreflightRequest(
        hosts,
        address or hosts[0].name.rpartition("@")[2],
        port or (job.port if job else None),
        seconds,
        "srun" if job else None,
    )
    if training:
        arguments, run = train.parse(list(training))
        zero = ds_config.read(arguments.deepspeed_config)
        request = replace(request, run=run, zero=zero, output=arguments.output)
    with bars.bar(total=3, bar_format="{desc}", leave=False) as bar:
        report = Preflight(request, os.environ, bar.set_description_str).check()
    print(table(hosts, report))
    for note in report.notes:
        print(note)
    if not training:
        print(f"left out: {', '.join(CHECKS_OF_A_RUN)} (give the options of amplify_ds.train)")
    if report.failures():
        sys.stdout.flush()  # the table comes first, even if both streams go into one file
        print(f"\n{describe(report.failures())}", file=sys.stderr)
        return 1
    print("nothing failed.")
    return 0


def describe(failures: list[Finding]) -> str:
    """Return the failures as text; equal failures of several machines appear once."""
    machines: dict[tuple[str, ...], list[str]] = {}
    for host, *failure in failures:
        machines.setdefault(tuple(failure), []).append(host)
    lines = [
        f"  {check} on {', '.join(names)}: {text}\n    -> {remedy}" for (check, text, remedy), names in machines.items()
    ]
    return "\n".join([f"{len(failures)} checks failed:", *lines])


def table(hosts: list[Host], report: PreflightReport) -> str:
    """Return a table with one line per machine and one column per check; - where a check was not made."""
    cells = {(f.host, f.check): "FAILED" if f.remedy else f.text for f in reversed(report.findings)}
    cells |= {(f.host, f.check): "FAILED" for f in report.failures()}
    rows = [["host", *CHECKS]]
    rows += [[host.name, *(cells.get((host.name, check), "-") for check in CHECKS)] for host in hosts]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


if __name__ == "__main__":
    command(main)
