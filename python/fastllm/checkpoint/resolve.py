"""A model argument -> a local folder or GGUF file: those as they are, the model of the package, else a hub id."""

from __future__ import annotations

import re
from pathlib import Path

from fastllm.demo import DEMO_MODEL
from fastllm.errors import CheckpointError

DEMO = "demo"  # the name of the model of the package
# Data only: no code, no pickles.
ALLOWED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?")


def resolve(model: str | Path | None, revision: str | None = None) -> Path:
    """The folder (or GGUF file) of `model`. None, and "demo" where there is no such folder, are the model of the
    package. HF_HOME and HF_HUB_OFFLINE mean what they mean everywhere else."""
    if model is None:
        return DEMO_MODEL
    try:
        path = Path(model).expanduser()
        if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
            return path
        exists = path.exists()
    except (OSError, ValueError, RuntimeError) as e:
        raise CheckpointError(f"model {str(model)[:200]!r}: {e}") from e
    if exists:
        raise CheckpointError(f"{path}: is not a directory; give the folder that holds config.json, or a .gguf file")
    if model == DEMO:
        return DEMO_MODEL
    if not isinstance(model, str) or not _HUB_ID.fullmatch(model) or ".." in model:
        raise CheckpointError(f"{str(model)[:200]}: no such directory, and not the id of a hub repository (owner/name)")
    return _download(model, revision)


def _download(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=ALLOWED))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError, ValueError) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise CheckpointError(
            f"{repo_id}: no such directory, and the hub repository cannot be fetched: {reason}"
        ) from e
