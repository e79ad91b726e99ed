"""Find validation sets that share proteins with training data; their losses would flatter the model unnoticed.

Equal fingerprints mean the same rows. In addition, proteins that fit into one window are compared by their hashes, if
both sides are small enough to be read within about a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import xxhash

from amplify_ds.data.mixture import Mixture
from amplify_ds.data.shards import Shards
from amplify_ds.vocab import BOS, EOS

READ = 2**26  # proteins of sources and validation sets with at most so many tokens are compared


def warnings(training: Mixture, validation: Mapping[str, Shards]) -> list[str]:
    """Return a warning for each validation set and training source that are known to share proteins."""
    lines = []
    small = {name: shards for name, shards in validation.items() if _is_small(shards)}
    hashes = {name: set(_hashes(shards)) for name, shards in small.items()}
    for source in training.sources:
        of_source = set(_hashes(source.shards)) if hashes and _is_small(source.shards) else set()
        for name, shards in validation.items():
            if shards.fingerprint == source.shards.fingerprint:
                lines.append(
                    f"the validation set {name} is the training source {source.name}, row for row: its losses say "
                    "nothing about proteins that the model was not trained on"
                )
            elif shared := len(of_source & hashes.get(name, set())):
                lines.append(
                    f"{shared:,} of {len(hashes[name]):,} proteins of the validation set {name} are in the "
                    f"training source {source.name} too, so its losses flatter the model: rebuild {source.shards.path} "
                    "with --exclude"
                )
    return lines


def _is_small(shards: Shards) -> bool:
    return shards.num_rows * shards.row_tokens <= READ


def _hashes(shards: Shards) -> Iterator[int]:
    """Yield the hash of every window that is a whole protein, with both <bos> and <eos>."""
    for number in range(len(shards.manifest["shards"])):
        tokens, lengths, row_starts = shards.arrays(number)
        for row in range(len(tokens)):
            content, begin = tokens[row].tobytes(), 0
            for length in lengths[row_starts[row] : row_starts[row + 1]].tolist():
                window = content[begin : begin + length]
                begin += length
                if window[0] == BOS and window[-1] == EOS:
                    yield xxhash.xxh3_64_intdigest(window)
