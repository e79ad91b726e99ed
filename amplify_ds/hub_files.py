"""Download from the Hugging Face hub with its own client, and explain the client's errors.

A model is NAME or NAME@REVISION, such as chandar-lab/AMPLIFY_120M.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from amplify_ds.errors import AmplifyError, first_line

# Only these files are downloaded; no code from the hub is fetched or run.
PATTERNS = ("*.json", "*.safetensors", "*.txt", "config.yaml")
NAME = re.compile(r"[\w.-]+/[\w.-]+(@\S+)?")


def is_hub_name(source: str) -> bool:
    return NAME.fullmatch(source) is not None


def download(source: str) -> Path:
    """Return the folder of a hub model, downloaded or from the local cache; the folder is named after the commit.

    Raises AmplifyError if the hub cannot be reached or refuses access, or if there is no such model.
    """
    name, _, revision = source.partition("@")
    try:
        return snapshot(name, revision=revision or None, allow_patterns=list(PATTERNS))
    except Exception as error:  # the client raises errors of many types
        reason = refusal(error, "model", revision) or (
            f"the hub could not be reached ({failure(error)}). On a machine with network access, run: hf download "
            f"{name} --local-dir FOLDER; then pass that FOLDER"
        )
        raise AmplifyError(
            f"{source}: is not a local folder, and could not be loaded from the Hugging Face hub: {reason}"
        ) from None


def snapshot(name: str, **options) -> Path:
    """Call huggingface_hub.snapshot_download with `options`, and with progress bars only on a terminal.

    `refusal` and `failure` explain the exceptions it raises.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    return Path(snapshot_download(name, **options))


def refusal(error: Exception, kind: str, revision: str | None) -> str | None:
    """Return why the hub refused a `kind` (model, dataset); None if it was not reached or failed."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return "access is restricted: request it on the hub, then log in (hf auth login)"
    if isinstance(error, RevisionNotFoundError):
        return f"the {kind} has no revision {revision} on the hub"
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has no {kind} of that name, or it is private (hf auth login)"
    return None


def failure(error: BaseException) -> str:
    """Return the client's error as one line, for errors that are no refusals."""
    error = error.__cause__ or error  # the client wraps the error in advice on caches
    return f"{type(error).__name__}: {first_line(error)[:200]}"
