"""How long a training step takes at least, from published peaks: what bounds it, what it costs.

Three things take time and overlap at best: products at the peak of the matrix units, memory at its
bandwidth, and messages at the bandwidth of the links. The longest is what bounds a step (Williams
et al., 2009, https://doi.org/10.1145/1498765.1498785). Real steps take longer; which of the three
is longest is the point.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from negclip_jax.models.transformer import TowerConfig


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """Published peaks of one device.

    Attributes:
      flops: dense bfloat16 operations a second.
      memory, memory_rate: bytes, and bytes a second.
      link_rate: bytes a second that it sends to devices of its group, all links together.
      group: devices that these links join.
      network_rate: bytes a second that it sends to other groups, its share of its host's.
      sources: pages of the makers.
    """

    name: str
    flops: float
    memory: float
    memory_rate: float
    link_rate: float
    group: int
    network_rate: float
    sources: tuple[str, ...]


# Makers add up both directions of a link ("bidirectional"); what a device can send is half.
ACCELERATORS = (
    Accelerator(
        name="TPU v5e",
        flops=197e12,
        memory=16e9,
        memory_rate=819e9,
        link_rate=400e9 / 2,
        group=256,
        network_rate=6.4e12 / 8 / 256,
        sources=("https://cloud.google.com/tpu/docs/v5e",),
    ),
    Accelerator(
        name="TPU v6e",
        flops=918e12,
        memory=32e9,
        memory_rate=1638e9,
        link_rate=800e9 / 2,
        group=256,
        network_rate=25.6e12 / 8 / 256,
        sources=("https://cloud.google.com/tpu/docs/v6e",),
    ),
    Accelerator(
        name="H100 SXM",
        flops=989.4e12,  # the data sheet's 1,979 is with sparsity
        memory=80e9,
        memory_rate=3350e9,
        link_rate=900e9 / 2,
        group=8,
        network_rate=400e9 / 8,
        sources=(
            "https://www.nvidia.com/en-us/data-center/h100/",
            "https://docs.nvidia.com/dgx/dgxh100-user-guide/introduction-to-dgxh100.html",
        ),
    ),
)

_FLOAT32, _BFLOAT16 = 4, 2
# Bytes of memory traffic a trained parameter: it is read in both passes, its gradient is written
# and read, Adam's two moments and itself are read and written.
_TRAINED_TRAFFIC = (2 + 2 + 6) * _FLOAT32
_PASSES = 3  # forward, and gradients of inputs and of weights


def seconds(collectives: Sequence[Mapping[str, Any]], device: Accelerator) -> float:
    """That the messages of a step take; `collectives` are the fields of `hlo.Collective`.

    Devices of a group first exchange among themselves, then each carries its part to the other
    groups, as the libraries do: so links and network each carry what they must and no more.
    """
    passes = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "all-to-all": 1}
    total = 0.0
    for message in collectives:
        devices, kind = message["devices"], message["kind"]
        whole = message["size"] * (devices if kind == "reduce-scatter" else 1)
        near = min(devices, device.group)
        far = devices // near
        share = (near - 1) / near / device.link_rate
        share += (far - 1) / far / near / device.network_rate
        total += message["times"] * passes.get(kind, 1) * whole * share
    return total


def memory_traffic(towers: Sequence[tuple[TowerConfig, float]], trained: int) -> float:
    """Bytes that a step reads and writes at least, in bfloat16 with float32 parameters.

    Each matrix product reads its input and writes its output once in each of its three passes;
    everything else is fused into them, and attention never writes its scores. No program does
    better, most do worse.

    Args:
      towers: that are computed, each with the tokens that it reads.
      trained: parameters that the step updates.
    """
    numbers = sum(
        tokens * tower.layers * (10 * tower.width + 2 * tower.mlp_width) for tower, tokens in towers
    )
    return _PASSES * _BFLOAT16 * numbers + _TRAINED_TRAFFIC * trained


def gradient_and_feature_messages(
    trained: int, pairs: int, devices: int, dim: int
) -> list[dict[str, Any]]:
    """What data-parallel training sends in a step, without a compiler.

    The gradient is summed over devices; text features are gathered, and their gradient is summed.
    """
    features = _FLOAT32 * pairs * devices * dim
    common = {"devices": devices, "times": 1}
    return [
        {"kind": "all-reduce", "size": _FLOAT32 * trained, **common},
        {"kind": "all-gather", "size": features, **common},
        {"kind": "all-reduce", "size": features, **common},
    ]


def device_hours(flops: float, device: Accelerator, *, mfu: float) -> float:
    """Hours of one device for so many operations at this share of its peak."""
    return flops / (mfu * device.flops) / 3600
