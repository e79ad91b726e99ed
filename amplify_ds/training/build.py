"""Build a run from its configuration, up to its first step. Every function here must be called on every rank.

The order is: data, run directory, model under DeepSpeed, weights to start from. Errors in the input are found in this
order, before anything of an earlier run is overwritten.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amplify_ds.config import RunConfig
from amplify_ds.data.loader import BatchSplit, TrainingBatches
from amplify_ds.data.mixture import Mixture
from amplify_ds.data.shards import Shards
from amplify_ds.data.skips import add_skips, read_skip_rows
from amplify_ds.data.verify import verify
from amplify_ds.model.encoder import Encoder
from amplify_ds.model.shape import Shape
from amplify_ds.training import (
    checkpoint,
    derived,
    ds_config,
    fp8,
    logs,
    overlap,
    run_directory,
    shared_files,
    stopping,
)
from amplify_ds.training.adamw import AdamW
from amplify_ds.training.engine import Engine
from amplify_ds.training.hub_fields import hub_fields
from amplify_ds.training.normuon import NorMuon
from amplify_ds.training.progress import Progress
from amplify_ds.training.ranks import Ranks
from amplify_ds.training.retention import Checkpoints
from amplify_ds.training.saving import BackgroundWriter
from amplify_ds.training.shared_flags import SharedFlags
from amplify_ds.training.telemetry import Telemetry
from amplify_ds.training.trainer import Trainer
from amplify_ds.training.watchdog import Watchdog

VERIFIED_BYTES = 2**30  # shards up to this size are checked against their checksums at every start, in a second or two
ReadWeights = Callable[[Path], tuple[dict[str, torch.Tensor], dict[str, Any]]]


@dataclass(frozen=True)
class Data:
    """The shards that a run reads."""

    sources: Mixture
    validation: dict[str, Shards]
    warnings: list[str]  # about validation sets that share proteins with training; rank 0 only


@dataclass(frozen=True)
class Start:
    """The state from which a run starts or continues."""

    progress: Progress
    skips: list[dict]  # rows that training skips (data/skips.py)
    origin: dict[str, Any] | None  # source of the initial weights; None: random
    saved_step: int | None  # step of this run's newest checkpoint; None if it continues from another run's


def build(
    run: RunConfig,
    zero: dict[str, Any],
    output: Path,
    ranks: Ranks,
    resume: str = "auto",
    initial: tuple[ReadWeights, Path] | None = None,
    skip_rows: Path | None = None,
) -> Trainer:
    """Return the trainer of this rank, ready for its first step.

    zero: content of the DeepSpeed file. initial: a function that returns the initial weights and their origin, and the
    path to call it with. skip_rows: file that lists rows to skip from now on. Raises AmplifyError for input or settings
    that cannot be used.
    """
    data = open_data(run, ranks)
    sources = data.sources
    split = derived.split_batch(run, sources.row_tokens, ranks.rank, ranks.world_size)
    shape = derived.model_config(run, sources.max_length)
    precision = derived.resolve_precision(run.training.precision, ranks.device.type)
    fp8.check(run, shape, sources.row_tokens, ranks.device.type)
    binding = {**run.binding(), "training data": sources.binding()}
    directory = open_directory(run, output, ranks, binding, resume)
    watch = start_watching(run, output, ranks)

    engine = build_engine(run, shape, zero, split, precision, ranks)
    start = load_start(run, engine, directory, ranks, resume, initial)
    skips = start.skips
    if skip_rows is not None:
        skips = add_skips(skips, read_skip_rows(skip_rows, sources), start.progress.batch)
    if ranks.leader and start.progress.step < run.training.steps:
        (output / run_directory.RESULT).unlink(missing_ok=True)  # this run was complete and now trains longer

    batches = TrainingBatches(sources, split, run.training.seed, **run.masking.model_dump(), skips=skips)
    return Trainer(
        run=run,
        ranks=ranks,
        engine=engine,
        batches=batches,
        validation=data.validation,
        progress=start.progress,
        telemetry=Telemetry(run, output, ranks, batches, shape, precision, start.progress),
        flags=SharedFlags(2, ranks),
        writer=BackgroundWriter(directory.checkpoints),
        watch=watch,
        directory=directory,
        constant_state={
            "binding": binding,
            "settings": run.model_dump(mode="json"),
            "model": hub_fields(shape),
            "precision": precision,
            "skips": skips,
            "origin": start.origin,
        },
        warnings=data.warnings,
        saved_step=start.saved_step,
    )


def open_data(run: RunConfig, ranks: Ranks) -> Data:
    """Open training sources and validation sets. Rank 0 verifies small ones and looks for shared proteins.

    Raises AmplifyError if shards are missing or damaged.
    """
    sources, validation = derived.training_sources(run), derived.validation_sets(run)
    if not ranks.leader:
        return Data(sources, validation, [])
    for shards in (*(source.shards for source in sources.sources), *validation.values()):
        if sum(file["bytes"] for file in shards.files().values()) <= VERIFIED_BYTES:
            verify(shards.path)
    return Data(sources, validation, overlap.warnings(sources, validation))


def open_directory(
    run: RunConfig, output: Path, ranks: Ranks, binding: dict[str, Any], resume: str
) -> run_directory.Directory:
    """Return the run directory, which rank 0 creates or checks, and locks; the other ranks wait for it."""
    checkpoints = lock = None
    if ranks.leader:
        lock = run_directory.open_run(output, run, binding, resume)
        checkpoints = Checkpoints(output, run.checkpoint.keep_last, run.checkpoint.keep_every, ranks.print)
    ranks.barrier()
    return run_directory.Directory(output, binding, checkpoints, lock)


def start_watching(run: RunConfig, output: Path, ranks: Ranks) -> Watchdog:
    """Start this rank's log, the listener for stop requests and the watchdog; return the watchdog."""
    job = ranks.from_leader(secrets.randbits(48))
    watch = Watchdog(output, ranks.rank, ranks.world_size, run.watchdog.seconds, job).start()
    logs.open_log(output, ranks.rank)
    stopping.opened()
    return watch


def build_engine(
    run: RunConfig, shape: Shape, zero: dict[str, Any], split: BatchSplit, precision: str, ranks: Ranks
) -> Engine:
    """Return an engine with a randomly initialised model, the same on every rank, and its optimizer."""
    torch.manual_seed(run.training.seed)
    model = Encoder(shape)
    model.gradient_checkpointing = run.training.activation_checkpointing
    settings = run.optimizer
    optimizer: torch.optim.Optimizer
    if settings.kind == "normuon":
        optimizer = NorMuon(model, settings, ranks.device)
    else:
        optimizer = AdamW(
            model.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=ranks.device.type == "cuda" or None,
        )
    if precision == "fp8":
        fp8.replace_linears(model, ranks.device)
    if run.training.compile:
        for block in model.transformer_encoder:  # one by one: the code compiled for the first serves all
            block.compile()
    config = ds_config.merge(zero, run, split.accumulation, ranks.world_size, precision)
    return Engine(model, optimizer, config, ranks)


def load_start(
    run: RunConfig,
    engine: Engine,
    directory: run_directory.Directory,
    ranks: Ranks,
    resume: str,
    initial: tuple[ReadWeights, Path] | None,
) -> Start:
    """Load the checkpoint to continue from, or else the initial weights, into the engine. Return the state to start in.

    Raises AmplifyError if the checkpoint began with other weights than `initial`, or if these do not fit the model.
    """
    output, init_from = directory.path, initial[1] if initial else None
    saved = choose_checkpoint(run, directory, ranks, resume)
    if saved is not None:
        engine.state.load(saved.reader(), saved.step)
        origin = saved.state["origin"]
        run_directory.check_origin(origin, init_from, output)
        ranks.print(f"continuing from {saved.path} ({saved.step} of {run.training.steps} steps are done)")
        is_of_this_run = saved.path.parent.resolve() == checkpoint.folder(output).resolve()
        progress = Progress(**saved.state["progress"])
        return Start(progress, saved.state["skips"], origin, saved.step if is_of_this_run else None)
    if initial is None:
        return Start(Progress(), [], None, 0)
    weights, origin = initial[0](initial[1])
    run_directory.check_weights(weights, engine.shapes, origin["path"])
    engine.state.load(lambda kind, name: weights[name], 0)
    ranks.print(f"starting with the weights of {origin['path']}")
    return Start(Progress(), [], origin, 0)


def choose_checkpoint(
    run: RunConfig, directory: run_directory.Directory, ranks: Ranks, resume: str
) -> checkpoint.CheckpointFile | None:
    """Return the checkpoint to continue from, which rank 0 chooses and verifies; None to start anew."""
    chosen = None
    if directory.checkpoints is not None:
        chosen = run_directory.choose_checkpoint(directory.checkpoints, resume, directory.binding, run.training.steps)
    path = ranks.from_leader("" if chosen is None else str(chosen.path))
    if not path:
        return None
    shared_files.wait_for(Path(path) / checkpoint.STATE)
    return checkpoint.open_checkpoint(Path(path))
