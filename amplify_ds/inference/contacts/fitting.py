"""Fit a head, predict contacts with it, and evaluate its precision."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
import xxhash

import amplify_ds
from amplify_ds.errors import AmplifyError
from amplify_ds.files import replacing
from amplify_ds.inference.contacts import head as heads
from amplify_ds.inference.contacts import precision
from amplify_ds.inference.contacts.attention_maps import contact_features
from amplify_ds.inference.contacts.head import Head
from amplify_ds.inference.contacts.targets import MINIMUM_SEPARATION, THRESHOLD, Target, known_pairs, observed
from amplify_ds.inference.model import Reader
from amplify_ds.inference.names import file_names
from amplify_ds.inference.resumable import finish, refuse_existing, resumable

Progress = Callable[[int], object]
# Bytes per feature: a float64 here, and in liblinear two copies (by rows and by columns) of an index and a value.
# Measured with scikit-learn 1.9: 41.
_BYTES = 8 + 2 * 16


class FitSettings(NamedTuple):
    """inverse_strength: of the L1 penalty. pairs_per_protein: use that many random pairs of each protein; None uses all
    pairs. Pairs are drawn uniformly, so the predicted probabilities remain calibrated."""

    inverse_strength: float = heads.C
    seed: int = 0
    pairs_per_protein: int | None = None


def fit_head(
    reader: Reader,
    model_name: str,
    targets: Sequence[Target],
    settings: FitSettings,
    progress: Progress,
    left_out: Sequence[str] = (),
) -> Head:
    """Fit a head to proteins with known contacts and return it.

    progress: called with the number of proteins done. left_out: names of proteins that were given but could not be
    used; they are recorded in the head. Needs 40 bytes of memory for each pair, layer and attention head. Raises
    AmplifyError if less is available.
    """
    shape = (reader.layers, reader.model.config.num_attention_heads)
    pairs = [_training_pairs(target, index, settings) for index, target in enumerate(targets)]
    count = sum(len(i) for i, _ in pairs)
    needed, available = count * shape[0] * shape[1] * _BYTES, psutil.virtual_memory().available
    if needed > available:
        raise AmplifyError(
            f"{count:,} pairs with {shape[0]} layers of {shape[1]} heads need {needed / 2**30:.1f} GiB of memory, "
            f"{available / 2**30:.1f} GiB are available: give fewer proteins, or fit on fewer pairs of each "
            "(--pairs-per-protein)"
        )
    features = np.empty((count, *shape), np.float64)
    contacts = np.empty(count, bool)
    begin = 0
    for target, (i, j) in zip(targets, pairs):
        rows = slice(begin, begin + len(i))
        contacts[rows] = target.known_contacts()[i, j] == 1
        for layer, maps in enumerate(contact_features(reader, target.tokens)):
            features[rows, layer] = maps[:, torch.from_numpy(i), torch.from_numpy(j)].T.cpu().numpy()
        begin = rows.stop
        progress(1)
    features = features.reshape(count, shape[0] * shape[1])
    weights, intercept = heads.fit(features, contacts, settings.inverse_strength, settings.seed)
    from sklearn import __version__ as sklearn_version

    description = {
        "proteins": {target.name: _digest(target) for target in targets},
        "left_out": list(left_out),
        "pairs": count,
        "contacts": int(contacts.sum()),
        "minimum_separation": MINIMUM_SEPARATION,
        "threshold_angstrom": THRESHOLD,
        "penalty": "l1",
        **settings._asdict(),
        "scikit_learn": sklearn_version,
        "version": amplify_ds.__version__,
    }
    return Head(model_name, reader.fingerprint(), intercept, weights.reshape(shape).tolist(), description)


def trained_on(head: Head, targets: Sequence[Target]) -> list[str]:
    """Return the names of the targets whose sequences the head was fitted on."""
    known = set(head.fit["proteins"].values())
    return [target.name for target in targets if _digest(target) in known]


def predict(reader: Reader, head: Head, tokens: np.ndarray) -> np.ndarray:
    """Return float32 [n, n], symmetric: the contact probability of each pair of residues.

    One layer is in memory at a time. The head was not fitted on pairs closer than MINIMUM_SEPARATION along the chain,
    so their probabilities are not meaningful.
    """
    weights = torch.tensor(head.weights, dtype=torch.float32, device=reader.device)
    logits = torch.full((len(tokens), len(tokens)), head.intercept, device=reader.device)
    for layer_weights, maps in zip(weights, contact_features(reader, tokens)):
        logits += torch.einsum("h,hij->ij", layer_weights, maps)
    return logits.sigmoid().cpu().numpy()


def evaluate(
    reader: Reader, head: Head, targets: Sequence[Target], progress: Progress
) -> Iterator[tuple[Target, dict[str, dict[str, float]]]]:
    """Yield (target, precisions) for each target; see precision.py. progress: called with the number of proteins."""
    for target in targets:
        yield target, precision.precisions(predict(reader, head, target.tokens), target.known_contacts())
        progress(1)


def write_precisions(path: Path, results: Sequence[tuple[Target, dict[str, dict[str, float]]]]) -> None:
    """Write a CSV with one row per protein. results: those of `evaluate`."""
    names = [(name, column) for name in precision.RANGES for column in precision.COLUMNS]
    refuse_existing(path)
    with replacing(path) as partial, open(partial, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "length", "observed", *(f"{name} {column}" for name, column in names)])
        for target, values in results:
            numbers = [f"{values[name][column]:.6g}" for name, column in names]
            table.writerow([target.name, len(target.tokens), observed(target.known_contacts()), *numbers])


def predict_file(
    reader: Reader, head: Head, targets: Sequence[Target], sequences: str, output: Path, progress: Progress
) -> list[str]:
    """Write an .npz with one float16 matrix [n, n] per protein, in order, and return the names in the archive.

    The names are those of the proteins, changed if they are not safe file names (names.py). Resumable (resumable.py).
    sequences: checksum of the input. progress: called with the number of proteins done. The comment of the archive
    identifies the model and the head.
    """
    if output.suffix != ".npz":
        raise AmplifyError(f"{output}: the name must end in .npz")
    job = {
        "what": "contact probabilities",
        "sequences": sequences,
        "proteins": len(targets),
        "model": head.fingerprint,
        "head": xxhash.xxh3_128_hexdigest(repr((head.weights, head.intercept)).encode()),
    }
    names = file_names([target.name for target in targets])
    with resumable(output, job) as chunks:
        for number, target in enumerate(targets):
            if number not in chunks:
                chunks.write(number, {"probability": predict(reader, head, target.tokens).astype(np.float16)})
            progress(1)

        def write(path: Path) -> None:
            with zipfile.ZipFile(path, "w") as archive:
                archive.comment = json.dumps({"version": amplify_ds.__version__, **job}).encode()
                for name, arrays in zip(names, chunks.read()):
                    entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))  # equal files for equal results
                    with archive.open(entry, "w", force_zip64=True) as file:
                        np.lib.format.write_array(file, arrays["probability"])

        finish(output, chunks, write)
    return names


def _training_pairs(target: Target, index: int, settings: FitSettings) -> tuple[np.ndarray, np.ndarray]:
    """Return (i, j) of the pairs of a protein that the head is fitted on."""
    i, j = known_pairs(target.known_contacts())
    if settings.pairs_per_protein is not None and len(i) > settings.pairs_per_protein:
        rng = np.random.default_rng([settings.seed, index])
        sample = np.sort(rng.choice(len(i), settings.pairs_per_protein, replace=False))
        i, j = i[sample], j[sample]
    return i, j


def _digest(target: Target) -> str:
    return xxhash.xxh3_128_hexdigest(target.tokens.tobytes())
