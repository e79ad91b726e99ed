"""Sources for mixtures, without shards."""

from types import SimpleNamespace

from amplify_ds.data.mixture import Source


def fake(name, weight=1, rows=10, row_tokens=8, max_length=4):
    shards = SimpleNamespace(
        num_rows=rows, row_tokens=row_tokens, max_length=max_length, path=f"/{name}", fingerprint=f"sha of {name}"
    )
    return Source(name, weight, shards)
