"""Files of the Hugging Face hub, by its own client, and what the client's errors mean to a user.

A model is NAME or NAME@REVISION, such as chandar-lab/AMPLIFY_120M.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from amplify_ds.errors import AmplifyError, first_line

# What a model folder may hold that is read here, and what is refused by name. No code of a hub is fetched or run.
WANTED = ("*.json", "*.safetensors", "*.txt", "config.yaml")
NAME = re.compile(r"[\w.-]+/[\w.-]+(@\S+)?")


def is_hub_name(source: str) -> bool:
    return NAME.fullmatch(source) is not None


def download(source: str) -> Path:
    """The folder of a hub model, from the local cache where it is there; its name is the commit.

    Raises AmplifyError when the hub cannot be reached, or has no such model for us.
    """
    name, _, revision = source.partition("@")
    try:
        return snapshot(name, revision=revision or None, allow_patterns=list(WANTED))
    except Exception as error:  # whatever the client raises
        why = refusal(error, "model", revision) or (
            f"the hub could not be reached ({failure(error)}). On a machine with a network: hf download {name} "
            "--local-dir FOLDER; then give that FOLDER"
        )
        raise AmplifyError(
            f"{source}: there is no such folder here, and as a model of the Hugging Face hub: {why}"
        ) from None


def snapshot(name: str, **options) -> Path:
    """huggingface_hub.snapshot_download, which has the options and raises what refusal and failure explain; its bars
    only on a terminal."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    return Path(snapshot_download(name, **options))


def refusal(error: Exception, kind: str, revision: str | None) -> str | None:
    """Why the hub does not give us a `kind` (model, dataset); None if it did not say: it was not reached, or failed."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return "the hub gives it to accounts with access only: ask for it there, then log in (hf auth login)"
    if isinstance(error, RevisionNotFoundError):
        return f"the {kind} has no revision {revision} on the hub"
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has no {kind} of that name, or it is private (hf auth login)"
    return None


def failure(error: BaseException) -> str:
    """What the client says when it is not a refusal, in a line."""
    error = error.__cause__ or error  # what happened, where that was wrapped in advice on caches
    return f"{type(error).__name__}: {first_line(error)[:200]}"
