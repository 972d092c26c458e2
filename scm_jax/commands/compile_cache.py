"""JAX's persistent compilation cache, in a folder of the user."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from scm_jax.files import user_paths

logger = logging.getLogger(__name__)

# What compiles faster than this is not worth a file.
MIN_COMPILE_SECONDS = 0.5


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/scm_jax/xla/PROCESSOR``, by default in ``~/.cache``."""
    # A program can fail on another kind of processor that shares the home directory.
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return user_paths.expand(root) / "scm_jax" / "xla" / _processor()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    features = [x for x in lines if x.startswith(("flags", "Features"))] or lines
    digest = hashlib.sha256(features[0].encode()).hexdigest()[:8]
    return f"{platform.machine()}-{digest}"


def enable() -> Path | None:
    """Turns the cache on for a command; returns its folder, or None without a cache.

    ``JAX_COMPILATION_CACHE_DIR`` names another folder, and
    ``JAX_ENABLE_COMPILATION_CACHE=false`` turns the cache off. A folder that cannot be
    written is a warning.
    """
    import jax

    options: Any = jax.config
    if not options.jax_enable_compilation_cache:
        return None
    if options.jax_compilation_cache_dir:
        return Path(options.jax_compilation_cache_dir)
    try:
        folder = default_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        logger.warning("compiled programs are not kept: %s", error)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder
