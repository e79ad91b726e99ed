"""Pretrain AMPLIFY on packed shards: `deepspeed … --no_local_rank --module amplify_ds.train …`."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from pathlib import Path

from amplify_ds import config, errors
from amplify_ds.errors import AmplifyError, command
from amplify_ds.shell import next_commands
from amplify_ds.training import failures, launcher_watch, stopping

SECONDS_FOR_RANK_0 = 5.0
DESCRIPTION = """\
Pretrain AMPLIFY by masked-language modelling on packed shards.

A recipe is a complete configuration; a YAML file and flags change parts of it. The DeepSpeed file has the settings of
ZeRO, offload and communication. If the run directory contains a checkpoint, training continues from the newest one.

  two CPU ranks:   DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 deepspeed --num_accelerators 2 --no_local_rank \\
                     --module amplify_ds.train --recipe tiny --deepspeed_config ds_configs/zero1.json \\
                     --data.train SHARDS --data.validation VALIDATION_SHARDS --output runs/first
  16 GPUs:         deepspeed --hostfile hostfile --no_local_rank --module amplify_ds.train --recipe 120M \\
                     --deepspeed_config ds_configs/zero1.json --data.train SHARDS --output runs/120M
  several sources: --data.train uniprot=DIR:15134 scop=DIR:136 oas=DIR:1   (weights, in rows)
  stage 2:         … --recipe 120M-stage2 --init-from runs/120M --data.train SHARDS_OF_2048 --output runs/120M-stage2
  check settings:  add --dry-run
"""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise AmplifyError(f"{message}; --help lists every option")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="amplify_ds.train",
        usage="%(prog)s --recipe NAME --output RUN [--config FILE.yaml] [--section.setting VALUE …]",
        description=DESCRIPTION,
        epilog="All other settings are those of the recipe, amplify_ds/recipes/NAME.yaml.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--recipe", required=True, choices=config.recipes(), help="complete configuration to start from")
    add("--config", metavar="FILE.yaml", help="settings that replace those of the recipe, in the same sections")
    add(
        "--deepspeed_config",
        metavar="FILE.json",
        default="ds_configs/zero1.json",
        help="settings of ZeRO, offload and communication (default %(default)s)",
    )
    add(
        "--output",
        metavar="RUN",
        required=True,
        help="run directory, for checkpoints, TensorBoard events and the result",
    )
    add(
        "--resume",
        metavar="auto|never|PATH",
        default="auto",
        help="auto: continue from the newest checkpoint in RUN; never: fail if RUN has a checkpoint; "
        "PATH: start from that checkpoint (default auto)",
    )
    add(
        "--init-from",
        metavar="SOURCE",
        type=Path,
        help="start with the weights of a run (its newest checkpoint), a checkpoint, a model folder (Hugging Face, "
        "TransformerEngine or Megatron-Core layout) or a model on the hub (NAME or NAME@REVISION), as in stage 2; "
        "a run with checkpoints continues from its newest one",
    )
    add(
        "--skip-rows",
        metavar="FILE",
        type=Path,
        help="skip these rows from now on; guards list some in RUN/skipped_rows.jsonl and RUN/loss_spikes.jsonl",
    )
    add("--dry-run", action="store_true", help="print configuration, sizes, steps and memory, and exit")
    config.add_flags(parser)
    return parser


def parse(arguments: list[str]) -> tuple[argparse.Namespace, config.RunConfig]:
    parser = build_parser()
    known, unknown = parser.parse_known_args(arguments)
    flags = {key: value for key, value in vars(known).items() if "." in key}
    # `resolve` reports unknown flags like unknown YAML keys, with the nearest valid names.
    flags.update({flag.lstrip("-").partition("=")[0]: "?" for flag in unknown if flag.startswith("--")})
    run = config.resolve(known.recipe, known.config, flags)
    if unknown:
        raise AmplifyError(f"unknown arguments: {' '.join(unknown)}; --help lists every option")
    if not run.data.train:
        raise AmplifyError("data.train is not set: give --data.train DIR (shards from data_prep/build_shards.py)")
    return known, run


def main() -> int:
    rank = int(os.environ.get("RANK", 0))
    if rank:
        errors.prefix = f"[rank {rank} on {socket.gethostname()}] "
    try:
        return pretrain(*parse(sys.argv[1:]))
    except Exception as error:
        if rank:  # rank 0 may fail for the same reason; its message is enough, and ends this rank
            time.sleep(SECONDS_FOR_RANK_0)
        failures.announce(str(error), error.code if isinstance(error, AmplifyError) else 1)
        raise


def pretrain(arguments: argparse.Namespace, run: config.RunConfig) -> int:
    if arguments.dry_run:
        from amplify_ds.training import dry_run, ds_config

        dry_run.print_plan(run, ds_config.read(arguments.deepspeed_config))
        return 0
    stopping.listen()
    stopping.listen_to_file(Path(arguments.output))
    launcher_watch.end_with_launcher()
    from amplify_ds.hub.folder import initial_weights  # takes seconds to import
    from amplify_ds.training import build, ds_config, engine, logs, run_directory
    from amplify_ds.training.ranks import is_broken_connection

    failures.watch(engine.meet())
    output, initial = Path(arguments.output), arguments.init_from and (initial_weights, arguments.init_from)
    zero = ds_config.read(arguments.deepspeed_config)
    trainer = None
    try:
        ranks = engine.start_ranks()
        trainer = build.build(run, zero, output, ranks, arguments.resume, initial, arguments.skip_rows)
        was_complete = (output / run_directory.RESULT).exists() and trainer.progress.step >= run.training.steps
        result = trainer.pretrain()
    except RuntimeError as error:  # a collective fails when another rank has ended
        if lost := launcher_watch.lost():
            raise RankLost(_lost_message(lost, trainer.watch.location if trainer else "before training")) from None
        if is_broken_connection(error):
            raise RankLost(
                f"lost the connection to another rank ({errors.first_line(error):.200}). Look for that rank's error "
                f"message above or in {output}/{logs.FOLDER}. The same command continues from the newest checkpoint."
            ) from None
        raise
    failures.stop()
    if result is None:
        engine.stop_ranks()
        return stopping.SAVED
    if ranks.leader:
        print(
            f"{'already complete' if was_complete else 'complete'}: {result['steps']} steps, {result['residues']:,} "
            f"residues at {result['residues_per_second']:,.0f} per second\n"
            f"checkpoint: {result['checkpoint']}\n"
            + "".join(f"warning: {text}\n" for text in result["warnings"])
            + next_commands(
                ("python", "-m", "amplify_ds.plot", output),
                ("python", "-m", "amplify_ds.export", output, "FOLDER"),
                ("tensorboard", "--logdir", output),
            )
        )
    engine.stop_ranks()
    return 0


class RankLost(AmplifyError):
    """Another rank has ended without a message, so this one cannot go on."""

    code = stopping.LOST


def _lost_message(lost: dict[int, int], place: str) -> str:
    """Return the error message for lost ranks, {process id: rank}.

    place: step and phase of this rank. The lost rank was at most one step ahead or behind.
    """
    ranks = ", ".join(f"rank {rank} (process {pid})" for pid, rank in lost.items())
    return (
        f"{ranks} on {socket.gethostname()} has ended; this rank was at {place}. Look for its error message above; "
        "without one it was killed, perhaps because memory ran out. The same command continues from "
        "the newest checkpoint."
    )


if __name__ == "__main__":
    command(main)
