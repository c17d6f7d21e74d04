"""Compiled programs are kept on disk, from one process to the next."""

from __future__ import annotations

import jax

from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.names import cache_directory

LEAST_SECONDS = 0.1  # of compilation; what is faster is not kept


def keep_programs() -> None:
    """Turns on JAX's compilation cache, in a directory that only this user can read.

    `load_model` does so, and every command. What the user has chosen stays: a directory of their
    own (`jax_compilation_cache_dir`), or no cache (`JAX_ENABLE_COMPILATION_CACHE=false`). Where the
    directory cannot be made there is no cache.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    try:
        directory = cache_directory() / "compiled"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, TaskVecError):
        return  # a home that cannot be written costs a compilation a run, nothing else
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
