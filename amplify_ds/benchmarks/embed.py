"""Measure embedding: `python -m amplify_ds.benchmark embed`.

    packed      `amplify_ds.embed`: the mean over the residues of each protein, from packed batches
    AutoModel   the usual loop on the same exported folder and proteins: batches of N proteins, padded to the longest,
                in file order or sorted by length; the mean is one masked sum

Tokenizing is not timed. A batch of one has no padding, which suits a CPU; a GPU needs larger batches. All run on one
core (with --device, on one GPU) and take turns, so that other load on the machine affects all of them. Speeds count
residues, without padding.

By default the proteins are resampled from real ones to the lengths of UniRef, as in `prep`, and the weights are random.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from amplify_ds.benchmarks import prep
from amplify_ds.benchmarks.common import one_core, table
from amplify_ds.errors import AmplifyError
from amplify_ds.inference.reading import proteins
from amplify_ds.inference.records import Records

_SHAPE = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, metavar="FOLDER", help="a Hugging Face folder (default: small, random weights)"
    )
    parser.add_argument("--input", type=Path, metavar="FASTA", help="proteins to embed (default: resampled ones)")
    parser.add_argument("--proteins", type=int, default=256, metavar="N", help="embed the first N (default: 256)")
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        default=[1, 8, 32],
        metavar="N",
        help="batch sizes of the usual loop, in proteins (default: 1 8 32)",
    )
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="measurements of each (default: 3)")
    parser.add_argument("--device", default="cpu", help="cpu (one core) or cuda (bf16) (default: cpu)")
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="where to work (default: the temporary directory)"
    )


def run(options: argparse.Namespace) -> None:
    if min(options.turns, options.proteins, *options.batches) < 1:
        raise AmplifyError("--turns, --proteins and --batches must be at least 1")
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.directory) as directory:
        fasta, folder = options.input, options.model or _make_model(Path(directory) / "model")
        if fasta is None:
            fasta = Path(directory) / "proteins.fasta"
            prep.make_fasta(fasta, options.proteins * 500)
        _compare(folder, fasta, options)


def _make_model(folder: Path) -> Path:
    """Write a small exported model with random weights."""
    from safetensors.torch import save_file

    from amplify_ds.hub.export import CODE, layout_config
    from amplify_ds.model import modeling_amplify
    from amplify_ds.model.configuration_amplify import AMPLIFYConfig

    model = modeling_amplify.AMPLIFY(AMPLIFYConfig(**_SHAPE))
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(layout_config(model.config)), encoding="utf-8")
    for name in CODE:
        shutil.copy(Path(modeling_amplify.__file__).with_name(name), folder / name)
    return folder


def _compare(folder: Path, fasta: Path, options: argparse.Namespace) -> None:
    import torch
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    from amplify_ds.inference.embeddings import Settings, embed_proteins, framed
    from amplify_ds.inference.model import load

    disable_progress_bar()
    torch.set_num_threads(1)
    reader = load(folder, options.device)
    auto_model = AutoModel.from_pretrained(folder.resolve(), trust_remote_code=True).eval()
    auto_model.to(reader.device, reader.dtype)
    chosen = [p for p in islice(proteins(Records(fasta)), options.proteins) if len(p.tokens) + 2 <= reader.max_length]
    residues = sum(len(protein.tokens) for protein in chosen)
    ids = [torch.from_numpy(framed(protein.tokens).astype(np.int64)) for protein in chosen]
    settings = Settings().resolved(reader.layers)

    def packed() -> np.ndarray:
        return embed_proteins(reader, chosen, settings)["mean"]

    @torch.inference_mode()
    def padded(order: list[int], size: int) -> np.ndarray:
        means = torch.empty(len(ids), auto_model.config.hidden_size)
        for begin in range(0, len(ids), size):
            indices = order[begin : begin + size]
            batch = torch.nn.utils.rnn.pad_sequence([ids[i] for i in indices], batch_first=True).to(reader.device)
            hidden = auto_model(input_ids=batch, attention_mask=batch != 0).last_hidden_state
            is_residue = (batch > 4)[..., None]  # no special token
            means[indices] = ((hidden * is_residue).sum(1, dtype=torch.float32) / is_residue.sum(1)).float().cpu()
        return means.numpy()

    file_order, by_length = list(range(len(ids))), sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    contestants: dict[str, Callable[[], np.ndarray]] = {"packed": packed}
    for size in options.batches:
        contestants[f"AutoModel, {size} per batch, file order"] = partial(padded, file_order, size)
        contestants[f"AutoModel, {size} per batch, sorted by length"] = partial(padded, by_length, size)
    clock = time.process_time if reader.device.type == "cpu" else time.perf_counter
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    results: dict[str, np.ndarray] = {}
    with one_core():
        for turn in range(options.turns + 1):
            for name, work in contestants.items():
                began = clock()
                results[name] = work()
                if turn:  # the first warms up
                    speeds[name].append(residues / (clock() - began))
    difference = max(float(np.abs(result - results["packed"]).max()) for result in results.values())
    lengths = [len(protein.tokens) for protein in chosen]
    print(
        f"mean embeddings of {len(chosen)} proteins, {residues:,} residues, lengths {min(lengths)} to {max(lengths)}, "
        f"mean {np.mean(lengths):.0f}; {sum(p.numel() for p in auto_model.parameters()):,} parameters, "
        f"{reader.dtype}, {reader.device.type}"
    )
    lines = []
    for name, values in speeds.items():
        lines.append((name, f"{np.median(values):,.0f} residues/s ({min(values):,.0f} to {max(values):,.0f})"))
        if name != "packed":
            lines.append(("  packed is faster", f"{np.median(np.divide(speeds['packed'], values)):.2f} times"))
    print(table([*lines, ("largest difference between embeddings", f"{difference:.1e}")]))
