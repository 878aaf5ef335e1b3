"""JAX's cache of compiled programs on disk: a restart compiles nothing twice."""

import contextlib
import logging
import zlib
from pathlib import Path

import jax

_MIN_COMPILE_SECONDS = 0.5
_ZLIB_HEADER = b"\x78"  # JAX compresses with zstandard where that is installed


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
    try:
        if entry[:1] == _ZLIB_HEADER:
            zlib.decompress(entry)
        elif entry:
            import zstandard  # absent: then JAX cannot have written the entry

            zstandard.ZstdDecompressor().decompress(entry)
        return bool(entry)
    except ImportError:
        return True
    except Exception:  # `zlib.error` or `zstandard.ZstdError`
        return False
