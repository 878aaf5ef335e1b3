"""The key-value store of JAX's coordinator, which all processes of a run read and write.

JAX keeps it below `jax._src`: its public helpers (`jax.experimental.multihost_utils`) are
collectives, without time-outs and without reasons. This is the only module that uses it, and only
in runs of several processes; `tests/runtime/test_coordinator.py` fails once JAX has a public one.
"""

import json
import re
from typing import Any

import jax

from negclip_jax.common.errors import InputError

_NEWEST_JAX = "0.12"
_ROOT = "negclip_jax"
_WAITING = ("blocking_key_value_get", "wait_at_barrier")
_LATE = re.compile(r"timed out task names:((?:\s*\d+)+)")


class Unreachable(Exception):
    """The coordinator, which lives in process 0, does not answer."""


class Late(Exception):
    """Something did not happen in time; `processes` did not come, where that is known."""

    def __init__(self, processes: list[int]):
        super().__init__(f"late: {processes}")
        self.processes = processes


class CoordinatorStore:
    """JSON values by key. Keys are paths; a folder of them can be read at once."""

    def __init__(self, client: Any = None):
        """`client` of the coordinator; by default that of `jax.distributed`.

        Raises InputError for a version of JAX that has moved it.
        """
        try:
            if client is None:
                from jax._src.distributed import global_state

                client = global_state.client
        except (ImportError, AttributeError) as error:
            raise InputError(
                f"runs of several processes need the client of JAX's coordinator, which JAX "
                f"{jax.__version__} has moved ({error}): install jax 0.8 to {_NEWEST_JAX}, which "
                "is known to have it"
            ) from error
        self._client = client

    def put(self, key: str, value: Any) -> None:
        """Writes or overwrites."""
        self._call("key_value_set", key, json.dumps(value), True)

    def put_first(self, key: str, value: Any) -> bool:
        """Writes unless another process was faster; returns whether this one wrote."""
        return self._call("key_value_set", key, json.dumps(value), absent="ALREADY") is not None

    def get(self, key: str) -> Any:
        """The value, or None where there is none."""
        text = self._call("key_value_try_get", key, absent="NOT_FOUND")
        return None if text is None else json.loads(text)

    def wait_for(self, key: str, seconds: float) -> Any:
        """The value, as soon as there is one; raises Late after so many seconds."""
        return json.loads(self._call("blocking_key_value_get", key, max(1, round(1000 * seconds))))

    def folder(self, name: str) -> dict[str, Any]:
        """All values directly below a folder, by the last part of their keys."""
        found = self._call("key_value_dir_get", f"{name}/")
        return {key.rpartition("/")[2]: json.loads(text) for key, text in found}

    def barrier(self, name: str, seconds: float) -> None:
        """Returns when all processes have called it; raises Late after so many seconds."""
        self._call("wait_at_barrier", name, max(1, round(1000 * seconds)))

    def _call(self, method: str, key: str, *arguments: Any, absent: str | None = None) -> Any:
        """Calls the client; None where the answer is the status `absent`."""
        try:
            answer = getattr(self._client, method)(f"{_ROOT}/{key}", *arguments)
        except jax.errors.JaxRuntimeError as error:
            message = str(error)
            if absent is not None and message.startswith(absent):
                return None
            if "DEADLINE_EXCEEDED" in message and method in _WAITING:
                named = _LATE.search(message)
                raise Late([int(n) for n in named[1].split()] if named else []) from None
            raise Unreachable(message.partition("\n")[0]) from None
        return True if answer is None else answer
