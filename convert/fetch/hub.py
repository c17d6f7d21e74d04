"""Fetches a model from the Hugging Face hub; the hub's own cache is asked first, alone."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from taskvec_jax.errors import TaskVecError, first_line

from ..formats.beside import refuse_adapter_files
from ..formats.sources import INDEX, WEIGHTS, open_weights

_SMALL = re.compile(
    r"config\.json|adapter_config\.json|tokenizer[^/]*\.(json|model)|added_tokens\.json"
    r"|special_tokens_map\.json|vocab\.json|vocab\.txt|merges\.txt|tekken\.json"
    r"|spiece\.model|spm\.model|sentencepiece[^/]*\.model"
)
_TOKENIZERS = (  # any one of these sets of files is a tokenizer
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("spiece.model",),
    ("spm.model",),
    ("sentencepiece.model",),
    ("sentencepiece.bpe.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("tekken.json",),
)
_SHARDS = {  # an index -> the files it may name
    f"model.safetensors{INDEX}": re.compile(r"model[^/]*\.safetensors"),
    f"pytorch_model.bin{INDEX}": re.compile(r"pytorch_model[^/]*\.bin"),
}


def wanted_files(names: list[str]) -> list[str]:
    """The files of a repository that a conversion needs; [] if it has no weights that are read.

    Of weights in several forms the one that transformers would take; see `sources.WEIGHTS`.
    """
    chosen = next((name for name in WEIGHTS if name in names), None)
    if chosen is None:
        return []
    shards = _SHARDS.get(chosen)
    weights = [n for n in names if n == chosen or (shards is not None and shards.fullmatch(n))]
    return [name for name in names if _SMALL.fullmatch(name)] + weights


def _has_model(directory: Path) -> bool:
    """Whether config and weights are there, and the weights whole."""
    if not (directory / "config.json").is_file():
        return False
    try:
        open_weights(directory)
    except TaskVecError:  # a download that was cut off
        return False
    return True


def _has_tokenizer(directory: Path) -> bool:
    return any(all((directory / name).is_file() for name in names) for names in _TOKENIZERS)


def fetch(repository: str, revision: str | None) -> Path:
    """The local directory of a model of the hub; what its cache does not have yet is downloaded.

    The network is not asked where the cache has config, weights, tokenizer.json and
    tokenizer_config.json. A tokenizer in another form may be a part of what the repository has:
    it is used as it is only if the network cannot be reached.

    Args:
      repository: ORG/NAME.
      revision: branch, tag or commit; None: the default branch.

    Raises:
      TaskVecError: it is not here and cannot be fetched, or holds an adapter.
    """
    import huggingface_hub  # slow to import

    what, usable = _say(repository, revision), None
    with contextlib.suppress(Exception):  # several kinds of them say "not in the cache"
        found = Path(
            huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True)
        )
        if _has_model(found) and _has_tokenizer(found):
            usable = found
            if all(
                (found / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")
            ):
                return found
    try:
        with _quiet():
            names = list(huggingface_hub.HfApi().list_repo_files(repository, revision=revision))
            refuse_adapter_files(names, what)
            files = wanted_files(names)
            if files:
                return Path(
                    huggingface_hub.snapshot_download(
                        repository, revision=revision, allow_patterns=files
                    )
                )
    except TaskVecError:
        raise
    except Exception as error:  # no network, no such repository, gated, disk full
        if usable is not None:
            return usable
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

    Only the cache is searched, and what it holds may be incomplete.

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
        " if it is gated), or copy its directory here and give it with --model=PATH (if a path was"
        " meant: there is no such directory here)"
    )
