"""Model folders of the Hugging Face hub: NAME or NAME@REVISION, such as chandar-lab/AMPLIFY_120M, to a local folder."""

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
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    name, _, revision = source.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(WANTED)))
    except Exception as error:  # whatever the library raises: no network, no such model, no access
        if isinstance(error, GatedRepoError):
            why = "the hub gives it to accounts with access only: ask for it there, then log in (hf auth login)"
        elif isinstance(error, RevisionNotFoundError):
            why = f"the model has no revision {revision} on the hub"
        elif isinstance(error, RepositoryNotFoundError):
            why = "the hub has no model of that name, or it is private (hf auth login)"
        else:
            why = (
                f"the hub could not be reached ({type(error).__name__}: {first_line(error)[:200]}). On a "
                f"machine with a network: hf download {name} --local-dir FOLDER; then give that FOLDER"
            )
        raise AmplifyError(
            f"{source}: there is no such folder here, and as a model of the Hugging Face hub: {why}"
        ) from None
