"""Validation sets that training reads as well: their losses flatter the model, and no number shows it.

Equal fingerprints are the same rows. Beyond that, proteins that are not cut into several windows are compared by their
hash, where both sides are small enough to be read within about a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import xxhash

from amplify_ds.data.mixture import Mixture
from amplify_ds.data.shards import Shards
from amplify_ds.vocab import BOS, EOS

READ = 2**26  # tokens of a training source, and of a validation set, up to which proteins are compared


def warnings(training: Mixture, validation: Mapping[str, Shards]) -> list[str]:
    """A sentence for each validation set and training source that share proteins, as far as that is known."""
    found = []
    small = {name: shards for name, shards in validation.items() if _is_small(shards)}
    hashes = {name: set(_hashes(shards)) for name, shards in small.items()}
    for source in training.sources:
        own = set(_hashes(source.shards)) if hashes and _is_small(source.shards) else set()
        for name, shards in validation.items():
            if shards.fingerprint == source.shards.fingerprint:
                found.append(
                    f"the validation set {name} is the training source {source.name}, row for row: its losses say "
                    "nothing about proteins that the model has not read"
                )
            elif shared := len(own & hashes.get(name, set())):
                found.append(
                    f"{shared:,} of {len(hashes[name]):,} proteins of the validation set {name} are in the "
                    f"training source {source.name} too, so its losses flatter the model: build {source.shards.path} "
                    "again with --exclude"
                )
    return found


def _is_small(shards: Shards) -> bool:
    return shards.num_rows * shards.row_tokens <= READ


def _hashes(shards: Shards) -> Iterator[int]:
    """Of every window that is a whole protein: it has both <bos> and <eos>."""
    for number in range(len(shards.manifest["shards"])):
        tokens, lengths, row_starts = shards.arrays(number)
        for row in range(len(tokens)):
            content, begin = tokens[row].tobytes(), 0
            for length in lengths[row_starts[row] : row_starts[row + 1]].tolist():
                window = content[begin : begin + length]
                begin += length
                if window[0] == BOS and window[-1] == EOS:
                    yield xxhash.xxh3_64_intdigest(window)
