"""Devices, meshes and placement: the only file that names mesh axes.

The batch is split over both axes. Parameters are replicated along `data` and, where a rule says
"fsdp", split along `fsdp`; XLA inserts the collectives.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from negclip_jax.common.errors import InputError, is_of_taken_device

BATCH_AXES = ("data", "fsdp")


def process_place() -> tuple[int, int]:
    """Number of this process and how many there are."""
    return jax.process_index(), jax.process_count()


def is_main_process() -> bool:
    """True on the one process that writes logs and shared files."""
    return jax.process_index() == 0


def all_devices() -> list[jax.Device]:
    """Those of all processes.

    Raises RuntimeError, of which `common.errors.device_errors` makes a message, where another
    process has the TPU: JAX itself would go on with the CPU.
    """
    if jax.default_backend() == "cpu":
        try:
            jax.devices("tpu")
        except RuntimeError as error:  # mostly there is none
            if is_of_taken_device(str(error)):
                raise
    return jax.devices()


def is_gpu(mesh: Mesh) -> bool:
    """Whether GPUs compute."""
    return mesh.devices.flat[0].platform == "gpu"


def fast_dtype(mesh: Mesh) -> str:
    """The compute type that the devices are made for, "bfloat16" or "float32".

    TPUs multiply bfloat16, and NVIDIA's GPUs do from compute capability 8.0 on (A100): CUDA C++
    Programming Guide, "Compute Capabilities". Of AMD's, whose versions are names, nothing is known.
    """

    def has_bfloat16(device: jax.Device) -> bool:
        version = re.fullmatch(r"(\d+)\.\d+", getattr(device, "compute_capability", ""))
        return device.platform == "tpu" or (version is not None and int(version[1]) >= 8)

    return "bfloat16" if all(map(has_bfloat16, mesh.devices.flat)) else "float32"


def make_mesh(*, data: int, fsdp: int, devices: list | None = None) -> Mesh:
    """Mesh `data x fsdp` over all devices; `data=-1` takes what `fsdp` leaves."""
    devices = all_devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise InputError(f"mesh.fsdp={fsdp} does not divide {len(devices)} devices")
    data = len(devices) // fsdp if data == -1 else data
    if data * fsdp != len(devices):
        raise InputError(
            f"mesh.data={data} x mesh.fsdp={fsdp} is not the number of devices, {len(devices)}"
        )
    return Mesh(np.asarray(devices).reshape(data, fsdp), BATCH_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def batch(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all devices."""
    return NamedSharding(mesh, P(BATCH_AXES))


def whole(mesh: Mesh | None, params: Any) -> Any:
    """Parameters that `fsdp` split, gathered on every device; to be called under `jax.jit`.

    Left to itself the compiler would rather move activations to the parts of the parameters, which
    at a few hundred million parameters is far more. None stands for one device.
    """
    return params if mesh is None else jax.lax.with_sharding_constraint(params, replicated(mesh))


def per_device(mesh: Mesh | None, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """`function(shared, rows)` run by every device on its own rows; to be called under `jax.jit`.

    What loops in `function` loops without communication: the gradient of `shared` is summed over
    the devices once, behind all of it, where the compiler left to itself would sum in every round.

    Args:
      mesh: the devices; None stands for one.
      function: of a tree that each device has as a whole (parameters that `fsdp` split are gathered
        first) and a tree of arrays `[B / devices, ...]`; returns a tree of arrays whose leading
        axes are then joined in the order of the devices.
    """

    def on_device(shared: Any, rows: Any) -> Any:
        return function(jax.lax.pcast(shared, BATCH_AXES, to="varying"), rows)

    if mesh is None:
        mesh = make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
    specs = {"in_specs": (P(), P(BATCH_AXES)), "out_specs": P(BATCH_AXES)}
    return jax.shard_map(on_device, mesh=mesh, **specs)


def gather_rows(rows: Any) -> Any:
    """Inside `per_device`: the rows of all devices, in their order, on each of them."""
    return jax.tree.map(lambda x: jax.lax.all_gather(x, BATCH_AXES, tiled=True), rows)


def first_row(rows: jax.Array) -> jax.Array:
    """Inside `per_device`: index, in the whole batch, of the first of this device's rows."""
    return jax.lax.axis_index(BATCH_AXES) * len(rows)


def of_parameters(mesh: Mesh, params: Any, rules: Any, *, min_shard_size: int) -> Any:
    """Tree of placements: "fsdp" splits the longest axis that the `fsdp` devices divide.

    `rules` is a tree of "fsdp" or "replicate" that matches the arrays or shapes; parameters of less
    than `min_shard_size` elements are replicated.
    """
    size = mesh.shape["fsdp"]

    def place(leaf, rule) -> NamedSharding:
        if rule not in ("fsdp", "replicate"):
            raise InputError(f"mesh.rules: {rule!r} is neither 'fsdp' nor 'replicate'")
        axes = [a for a, n in enumerate(leaf.shape) if n % size == 0]
        if rule == "replicate" or size == 1 or not axes or leaf.size < min_shard_size:
            return replicated(mesh)
        longest = max(axes, key=lambda a: leaf.shape[a])
        return NamedSharding(mesh, P(*[None] * longest, "fsdp"))

    return jax.tree.map(place, params, rules)


def check_batch(mesh: Mesh, batch_size: int, microbatches: int, what: str) -> None:
    """InputError where the batch does not split evenly over devices and micro-batches."""
    if batch_size < 1 or batch_size % mesh.size:
        raise InputError(f"{what}={batch_size} is not divisible by {mesh.size} devices")
    if microbatches < 1 or (batch_size // mesh.size) % microbatches:
        raise InputError(
            f"train.microbatches={microbatches} does not divide the {batch_size // mesh.size} "
            f"pairs that each device holds ({what}={batch_size} over {mesh.size} devices)"
        )


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Rows of a global batch that this process feeds, ascending int64."""
    indices = batch(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[i[0]] for i in indices]))


def to_global(mesh: Mesh, tree: Any) -> Any:
    """Host arrays, this process's share of each leading axis, to arrays split over the mesh."""
    placement = batch(mesh)
    processes = mesh.size // mesh.local_mesh.size
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(
            placement, x, (len(x) * processes, *x.shape[1:])
        ),
        tree,
    )


def put(tree: Any, placements: Any) -> Any:
    """Host arrays (the same on every process) to device arrays, leaf by leaf."""
    return jax.tree.map(
        lambda x, s: jax.make_array_from_callback(np.shape(x), s, lambda i: np.asarray(x)[i]),
        tree,
        placements,
    )


def to_host(array: jax.Array) -> np.ndarray:
    """The whole array in this process's memory, also where other processes hold parts of it."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def from_main(tree: Any) -> Any:
    """Process 0's arrays, in the memory of every process; all of them have the same shapes."""
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def from_all(array: np.ndarray) -> np.ndarray:
    """Arrays of one shape, one of each process, stacked in the order of the processes."""
    return np.asarray(multihost_utils.process_allgather(array)).reshape(-1, *array.shape)
