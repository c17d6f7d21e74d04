"""Fetches a model from the Hugging Face hub; the hub's own cache is asked first, alone."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from convert.sources import open_weights
from taskvec_jax.errors import TaskVecError, first_line

_SMALL = re.compile(
    r"config\.json|tokenizer.*\.(json|model)|special_tokens_map\.json|vocab\.json|merges\.txt"
)
_WEIGHTS = (
    re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"),
    re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin|pytorch_model\.bin\.index\.json"),
)


def wanted_files(names: list[str]) -> list[str]:
    """The files of a repository that a conversion needs: safetensors if it has any, else .bin."""
    for pattern in _WEIGHTS:
        if weights := [name for name in names if pattern.fullmatch(name)]:
            return [name for name in names if _SMALL.fullmatch(name)] + weights
    return []


def fetch(repository: str, revision: str | None) -> Path:
    """The local directory of a model of the hub, downloaded if it is not in the hub's cache yet.

    Args:
      repository: ORG/NAME.
      revision: branch, tag or commit; None: the default branch.

    Raises:
      TaskVecError: it is not here and cannot be fetched.
    """
    import huggingface_hub  # slow to import

    what = _say(repository, revision)
    try:
        found = huggingface_hub.snapshot_download(
            repository, revision=revision, local_files_only=True
        )
        if (Path(found) / "config.json").is_file():
            open_weights(Path(found))
            return Path(found)
    except TaskVecError:
        pass  # a download that was cut off: go on with it
    except Exception:  # huggingface_hub raises several kinds for "not in the cache"
        pass
    try:
        with _quiet():
            names = huggingface_hub.HfApi().list_repo_files(repository, revision=revision)
            files = wanted_files(list(names))
            if files:
                return Path(
                    huggingface_hub.snapshot_download(
                        repository, revision=revision, allow_patterns=files
                    )
                )
    except Exception as error:  # no network, no such repository, gated, disk full
        raise _unreachable(what, error) from None
    raise TaskVecError(
        f"{what} has neither safetensors nor pytorch_model.bin files; give the path of another"
        " form of this model with --model=PATH"
    )


def fetch_config(repository: str, revision: str | None) -> Path:
    """The local directory of a model's config.json, and perhaps of nothing else of the model.

    Args:
      repository, revision: as for `fetch`.

    Raises:
      TaskVecError: it is not here and cannot be fetched.
    """
    import huggingface_hub  # slow to import

    try:  # the hub's cache is asked first, by this call itself
        with _quiet():
            return Path(
                huggingface_hub.hf_hub_download(repository, "config.json", revision=revision)
            ).parent
    except Exception as error:  # no network, no such repository or file, gated, disk full
        raise _unreachable(_say(repository, revision), error) from None


def cached_snapshot(repository: str, revision: str | None) -> Path | None:
    """The directory, named by its commit, that the hub's cache has for a revision; None: none.

    Only the cache is looked at, and what it holds need not be whole.

    Args:
      repository, revision: as for `fetch`.
    """
    from huggingface_hub import constants  # slow to import

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    try:
        commit = (folder / "refs" / (revision or "main")).read_text().strip()
    except OSError:
        return None
    found = folder / "snapshots" / commit
    return found if commit and found.is_dir() else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without a network the hub's client warns of every retry, twice; our one line says it all."""
    from huggingface_hub.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _say(repository: str, revision: str | None) -> str:
    return repository + (f" at revision {revision}" if revision else "")


def _unreachable(what: str, error: Exception) -> TaskVecError:
    return TaskVecError(
        f"{what} is not on this machine and cannot be fetched from the Hugging Face hub"
        f" ({type(error).__name__}: {first_line(str(error))}); connect once (and accept its licence"
        " if it is gated), or copy its directory here and give it with --model=PATH"
    )
