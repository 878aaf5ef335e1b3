"""JAX's cache of compiled programs on disk: a restart compiles nothing twice."""

import contextlib
import logging
import zlib
from pathlib import Path

import jax

_MIN_COMPILE_SECONDS = 0.5
_ZLIB_HEADER = 0x78  # JAX compresses with zstandard where that is installed


def use(directory: str) -> None:
    """Keeps programs that took long to compile in `directory`, on a disk or in a bucket.

    JAX writes an entry in place, and never again: one that a killed process left cut short would
    be a warning at every restart. Such entries are removed here.
    """
    if "://" not in directory:
        for entry in Path(directory).glob("*-cache"):
            with contextlib.suppress(OSError):  # another process has removed it
                if not _is_whole(entry.read_bytes()):
                    entry.unlink()
                    logging.info("removed %s, a compiled program that was cut short", entry)
    jax.config.update("jax_compilation_cache_dir", directory)
    seconds = min(_MIN_COMPILE_SECONDS, jax.config.jax_persistent_cache_min_compile_time_secs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


def _is_whole(entry: bytes) -> bool:
    if not entry:
        return False
    if entry[0] != _ZLIB_HEADER:
        return _is_whole_zstandard(entry)
    try:
        zlib.decompress(entry)
    except zlib.error:
        return False
    return True


def _is_whole_zstandard(entry: bytes) -> bool:
    try:
        import zstandard
    except ImportError:  # then JAX cannot have written it
        return True
    try:
        zstandard.ZstdDecompressor().decompress(entry)
    except zstandard.ZstdError:
        return False
    return True
