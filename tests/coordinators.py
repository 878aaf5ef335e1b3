"""JAX's real coordinator, and stores of several clients of it, all in this process."""

import concurrent.futures
import contextlib
from collections.abc import Iterator

from jax._src.lib import _jax
from processes import free_port

from negclip_jax.runtime.coordinator import CoordinatorStore


@contextlib.contextmanager
def connected(count: int) -> Iterator[list[CoordinatorStore]]:
    """Boards of `count` members of one team."""
    port = free_port()
    service = _jax.get_distributed_runtime_service(f"[::]:{port}", count, shutdown_timeout=5)
    clients = [
        _jax.get_distributed_runtime_client(f"localhost:{port}", i, init_timeout=20)
        for i in range(count)
    ]
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda client: client.connect(), clients))
        yield [CoordinatorStore(client) for client in clients]
        list(pool.map(lambda client: client.shutdown(), clients))
    service.shutdown()
