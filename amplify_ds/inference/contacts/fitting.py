"""Fit a head, predict contacts with it, measure its precision."""

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
# Bytes for each number: the float64 here, and twice an index and a value, by rows and by columns, in liblinear (41 were
# measured with scikit-learn 1.9).
_BYTES = 8 + 2 * 16


class Fitting(NamedTuple):
    """pairs_per_protein: that many at random (uniformly, so that probabilities stay right), None: all."""

    inverse_strength: float = heads.C
    seed: int = 0
    pairs_per_protein: int | None = None


def fit_head(
    reader: Reader,
    model_name: str,
    targets: Sequence[Target],
    settings: Fitting,
    progress: Progress,
    left_out: Sequence[str] = (),
) -> Head:
    """The head of a model from proteins whose contacts are known. progress: proteins. left_out: names of those that
    were given but could not be used; the head records them.

    Memory: 40 bytes for each pair, layer and head. Raises AmplifyError where it is not there.
    """
    shape = (reader.layers, reader.model.config.num_attention_heads)
    pairs = [_chosen(target, index, settings) for index, target in enumerate(targets)]
    count = sum(len(i) for i, _ in pairs)
    needed, there = count * shape[0] * shape[1] * _BYTES, psutil.virtual_memory().available
    if needed > there:
        raise AmplifyError(
            f"{count:,} pairs of {shape[0]} layers of {shape[1]} heads need {needed / 2**30:.1f} GiB, "
            f"{there / 2**30:.1f} GiB are free: give fewer proteins, or fit on some pairs of each (--pairs-per-protein)"
        )
    features = np.empty((count, *shape), np.float64)
    contacts = np.empty(count, bool)
    begin = 0
    for target, (i, j) in zip(targets, pairs):
        here = slice(begin, begin + len(i))
        contacts[here] = target.known_contacts()[i, j] == 1
        for layer, maps in enumerate(contact_features(reader, target.tokens)):
            features[here, layer] = maps[:, torch.from_numpy(i), torch.from_numpy(j)].T.cpu().numpy()
        begin = here.stop
        progress(1)
    features = features.reshape(count, shape[0] * shape[1])
    weights, intercept = heads.fit(features, contacts, settings.inverse_strength, settings.seed)
    from sklearn import __version__ as sklearn_version

    described = {
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
    return Head(model_name, reader.fingerprint(), intercept, weights.reshape(shape).tolist(), described)


def trained_on(head: Head, targets: Sequence[Target]) -> list[str]:
    """Names of those whose sequences the head was fitted on."""
    known = set(head.fit["proteins"].values())
    return [target.name for target in targets if _digest(target) in known]


def predict(reader: Reader, head: Head, tokens: np.ndarray) -> np.ndarray:
    """float32 [n, n]: the probability of contact of each pair of residues, symmetric; one layer is in memory at a time.

    Nearer than MINIMUM_SEPARATION along the chain the regression was not fitted: numbers there mean little.
    """
    weights = torch.tensor(head.weights, dtype=torch.float32, device=reader.device)
    total = torch.full((len(tokens), len(tokens)), head.intercept, device=reader.device)
    for of_layer, maps in zip(weights, contact_features(reader, tokens)):
        total += torch.einsum("h,hij->ij", of_layer, maps)
    return total.sigmoid().cpu().numpy()


def evaluate(
    reader: Reader, head: Head, targets: Sequence[Target], progress: Progress
) -> Iterator[tuple[Target, dict[str, dict[str, float]]]]:
    """(protein, its precisions) for each; see precision.py. progress: proteins."""
    for target in targets:
        yield target, precision.precisions(predict(reader, head, target.tokens), target.known_contacts())
        progress(1)


def write_precisions(path: Path, found: Sequence[tuple[Target, dict[str, dict[str, float]]]]) -> None:
    """A CSV with a row for each protein."""
    names = [(name, column) for name in precision.RANGES for column in precision.COLUMNS]
    refuse_existing(path)
    with replacing(path) as partial, open(partial, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "length", "observed", *(f"{name} {column}" for name, column in names)])
        for target, values in found:
            numbers = [f"{values[name][column]:.6g}" for name, column in names]
            table.writerow([target.name, len(target.tokens), observed(target.known_contacts()), *numbers])


def predict_file(
    reader: Reader, head: Head, targets: Sequence[Target], sequences: str, output: Path, progress: Progress
) -> list[str]:
    """Write an .npz with a float16 matrix [n, n] for each protein, in order; resumable (resumable.py).

    sequences: their checksum. progress: proteins. The comment of the archive says which model and head this was.
    Returns the names in the archive: the proteins' own, but for those that are no safe names of files (names.py).
    """
    if output.suffix != ".npz":
        raise AmplifyError(f"{output}: the name must end in .npz, the format that is written")
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
                    entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))  # equal bytes for equal work
                    with archive.open(entry, "w", force_zip64=True) as file:
                        np.lib.format.write_array(file, arrays["probability"])

        finish(output, chunks, write)
    return names


def _chosen(target: Target, index: int, settings: Fitting) -> tuple[np.ndarray, np.ndarray]:
    """(i, j) of the pairs of a protein that train."""
    i, j = known_pairs(target.known_contacts())
    if settings.pairs_per_protein is not None and len(i) > settings.pairs_per_protein:
        draw = np.random.default_rng([settings.seed, index])
        some = np.sort(draw.choice(len(i), settings.pairs_per_protein, replace=False))
        i, j = i[some], j[some]
    return i, j


def _digest(target: Target) -> str:
    return xxhash.xxh3_128_hexdigest(target.tokens.tobytes())
