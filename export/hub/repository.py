"""Checkpoints by their ids on the Hugging Face hub, kept in huggingface_hub's own cache.

    CACHE/models--OWNER--NAME/snapshots/COMMIT/FILE -> CACHE/models--OWNER--NAME/blobs/SHA256

With Xet, blobs/SHA256 is in turn a link to CACHE/blobs/XX/HASH, which all models share.
"""

import glob
import logging
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgeblt.errors import EdgebltError
from edgeblt.export.hub.download import fetch_large_files

if TYPE_CHECKING:  # imported where it is used: local checkpoints do without it, and it is absent on devices
    from huggingface_hub.hf_api import ModelInfo

# The form that huggingface_hub.utils.validate_repo_id accepts, always with an owner: a single word is a path.
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"(?!.*--)(?!.*\.\.)(?!.*\.git$){_NAME}/{_NAME}")
_REVISION = re.compile(r"(?!.*\.\.)(?!/)[^\s~^:?*\[\\]+")

_SETTINGS = {"config.json", "generation_config.json", "params.json", "train_args.json"}
_SINGLE, _INDEX, _PICKLE, _ENTROPY = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "consolidated.pth",
)  # fmt: skip
_WEIGHTS = ((_SINGLE, _INDEX, ".safetensors"), (_PICKLE, f"{_PICKLE}.index.json", ".bin"))
_PATCHER = {f"entropy_model/{name}" for name in ("params.json", _ENTROPY)}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TIMEOUT = 10.0  # seconds, for the hub to begin its answer


def local_checkpoint(checkpoint: str | Path) -> Path:
    """The directory of a checkpoint: a path is returned unchanged, a model `OWNER/NAME[@REVISION]` is downloaded.

    Only files that edgeblt reads and the cache lacks are downloaded; a later run continues where one broke off. If the
    hub cannot be reached, the cache is used. Raises EdgebltError: no such model or revision, or none
    that may be read; one without weights that edgeblt reads; a connection that breaks off; a full disk.
    """
    if not is_hub_id(checkpoint):
        return Path(checkpoint)
    repository, _, revision = os.fspath(checkpoint).partition("@")
    with _quiet():
        return _download(repository, revision or None)


def is_hub_id(checkpoint: str | Path) -> bool:
    """Whether `checkpoint` has the form of a hub id and is not an existing path."""
    text = os.fspath(checkpoint)
    repository, at, revision = text.partition("@")
    if not _REPOSITORY.fullmatch(repository) or (at and not (_REVISION.fullmatch(revision) and revision.isprintable())):
        return False
    return not os.path.lexists(text)


def needed_files(names: Collection[str]) -> list[str]:
    """The files of a model that edgeblt reads; empty if it cannot read the model.

    Weights are looked for in transformers' order: one safetensors file, several, the same as pickles, and then what
    `facebook/blt-entropy` has. Other pickles, and formats of other libraries, are never read.
    """
    weights = {_ENTROPY}
    for single, index, suffix in _WEIGHTS:
        if single in names:
            weights = {single}
            break
        if index in names:
            weights = {index} | {name for name in names if name.endswith(suffix) and "/" not in name}
            break
    found = set(names)
    complete = weights & found and {"config.json", "params.json"} & found
    return sorted((_SETTINGS | _PATCHER | weights) & found) if complete else []


def repository_of(directory: Path) -> str | None:
    """`OWNER/NAME` of a snapshot in the cache, None for any other directory."""
    folder = directory.parent.parent.name
    if directory.parent.name != "snapshots" or not folder.startswith("models--"):
        return None
    return folder.removeprefix("models--").replace("--", "/")


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError, RevisionNotFoundError  # type: ignore[attr-defined]  # httpx's own

    try:
        model = _look_up(repository, revision)
    except (OSError, HTTPError) as error:
        cached = None if isinstance(error, RevisionNotFoundError) else _cached(repository, revision)
        if cached is None:
            raise _refusal(error, repository, revision) from None
        return cached
    files = {file.rfilename: file for file in model.siblings or ()}
    needed = needed_files(files)
    if not needed:
        raise _unusable(repository, files)
    try:
        fetch_large_files(repository, model.sha, [files[name] for name in needed])
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=[glob.escape(name) for name in needed])
        )
    except (OSError, HTTPError) as error:
        raise _failure(error, repository, revision) from None


def _look_up(repository: str, revision: str | None) -> "ModelInfo":
    """The model's commit and files."""
    from huggingface_hub import HfApi, constants

    try:
        return HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=_TIMEOUT)
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, OSError):  # BadRequestError is both
            raise
        raise EdgebltError(
            f"{constants.ENDPOINT} does not answer as the Hugging Face hub does; correct HF_ENDPOINT, or see what the "
            "network wants of you first"
        ) from None


def _cached(repository: str, revision: str | None) -> Path | None:
    """The snapshot that an earlier run made complete."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", "params.json"):
        file = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(file, str):
            folder = Path(file).parent
            if needed_files([path.relative_to(folder).as_posix() for path in folder.rglob("*")]):
                return folder
    return None


def _unusable(repository: str, names: Collection[str]) -> EdgebltError:
    pickles = sorted(name for name in names if name.endswith(_PICKLES))
    if pickles and not any(name.endswith(".safetensors") for name in names):
        return EdgebltError(
            f"the model {repository} has its weights only as {pickles[0]!a:.60}, which is not read; give one that has "
            f"{_SINGLE} or {_PICKLE}, and config.json"
        )
    return EdgebltError(
        f"the model {repository} lacks {_SINGLE} (or {_INDEX}) or config.json; give one in transformers' or Meta's form"
    )


def _refusal(error: Exception, repository: str, revision: str | None) -> EdgebltError:
    """The error for a model that the hub refuses to give."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repository}"
    login = "log in with `hf auth login` or set HF_TOKEN"
    match error:
        case errors.GatedRepoError():
            return EdgebltError(f"the model {repository} is gated; accept its licence on {page}, and {login}")
        case errors.RevisionNotFoundError():
            return EdgebltError(
                f"the model {repository} has no revision {revision}; give a branch, tag or commit listed on {page}"
            )
        case errors.RepositoryNotFoundError():
            return EdgebltError(
                f"{repository} is neither a directory nor a model that {constants.ENDPOINT} shows you; correct the "
                f"path or the name, or, if it is private, {login}"
            )
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            return EdgebltError(
                f"{constants.ENDPOINT} refuses access to {repository} ({error.response.status_code}); accept its "
                f"licence on {page}, and {login}"
            )
        case errors.HfHubHTTPError():
            return EdgebltError(
                f"{constants.ENDPOINT} answers {error.response.status_code} to a question for {repository}; try later"
            )
        case errors.OfflineModeIsEnabled():
            return EdgebltError(
                f"{repository} is neither a directory nor a model in the cache {constants.HF_HUB_CACHE}, and "
                "HF_HUB_OFFLINE is set; correct the path, or unset HF_HUB_OFFLINE and download the model"
            )
    return EdgebltError(
        f"{repository} is neither a directory nor a model in the cache {constants.HF_HUB_CACHE}, and "
        f"{constants.ENDPOINT} cannot be reached ({_reason(error)}); correct the path, or connect to the network"
    )


def _failure(error: Exception, repository: str, revision: str | None) -> EdgebltError:
    """The error for a download that failed."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403, 404):
        return _refusal(error, repository, revision)
    if isinstance(error, OSError) and error.errno is not None:
        return EdgebltError(
            f"{constants.HF_HUB_CACHE} cannot be written ({error.strerror}); free some space, or set HF_HOME to a "
            "directory elsewhere"
        )
    return EdgebltError(
        f"the download of {repository} broke off ({_reason(error)}); run the same command again to continue it"
    )


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the actual failure; the error itself gives advice
    if isinstance(error, HfHubHTTPError):
        return f"{error.response.status_code} {error.response.reason_phrase}"
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences huggingface_hub: its bars, as ours replace them, and its warnings, as a failure is reported once."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # public, but not to mypy

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with disable_progress_bars():
            yield
    finally:
        logger.setLevel(level)
