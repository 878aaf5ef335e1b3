"""The step that `launch.py` runs lowers for a TPU and for a GPU, on a machine that has neither.

Lowering turns the whole update, gradient and optimizer included, into what those compilers read:
an operation that has no rule there fails here. Whether it fits and how fast it is, only they know.
"""

import dataclasses
import itertools
import re
import types

import jax
import pytest

from bench import material
from bench.virtual_steps import Case, step_of
from negclip_jax.models import transformer

SPLIT = {1: 1, 8: 2}  # devices, and how many share parameters


@pytest.fixture(autouse=True)
def three_blocks(monkeypatch):
    """Two of them run in the loop: of one JAX makes a loop in either form."""
    sizes = material.ARCHITECTURES["tiny"]
    deeper = dataclasses.replace(sizes, text=dataclasses.replace(sizes.text, layers=3))
    monkeypatch.setitem(material.ARCHITECTURES, "tiny", deeper)


def traced(devices: int, **options) -> jax.stages.Traced:
    """The published recipe on packed captions and cached features, for a mesh of this size."""
    case = Case("tiny", "text", 8, fsdp=SPLIT[devices])
    step, arguments = step_of(case, devices=jax.devices()[:devices], **options)
    return step.jitted.trace(*arguments)


LOWERED = ((1, "float32", True), (8, "bfloat16", True))
OTHERS = [
    c for c in itertools.product((1, 8), ("float32", "bfloat16"), (True, False)) if c not in LOWERED
]


@pytest.mark.parametrize(
    ("devices", "dtype", "scan"),
    [*LOWERED, *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS)],
)
def test_the_step_lowers_for_accelerators(devices, dtype, scan):
    step = traced(devices, dtype=dtype, scan=scan)
    for platform in ("tpu", "cuda"):
        program = step.lower(lowering_platforms=(platform,))
        text = program.as_text()
        assert f"mhlo.num_partitions = {devices} " in text
        assert ("stablehlo.while" in text) is scan
        # What tensor cores and the MXU multiply, and at which precision.
        products = re.findall(r"stablehlo.dot_general .*", text)
        narrow = [line for line in products if "bf16>" in line.partition("->")[0]]
        full = [line for line in products if "precision = [HIGHEST, HIGHEST]" in line]
        assert len(products) > 20
        assert (len(full) == len(products)) if dtype == "float32" else (len(narrow) > 20)
        assert not (narrow and dtype == "float32")
        # The state and the loss stay float32 whatever is multiplied.
        state, metrics = program.out_info
        found = [*jax.tree.leaves((state.params, state.opt_state)), metrics["loss"]]
        assert {str(x.dtype) for x in found} == {"float32", "int32"}  # Adam counts its updates


@pytest.mark.parametrize("platform", [pytest.param("tpu", marks=pytest.mark.slow), "cuda"])
def test_the_step_can_be_exported(platform):
    step, arguments = step_of(Case("tiny", "text", 8))
    exported = jax.export.export(step.jitted, platforms=[platform])(*arguments)
    assert exported.platforms == (platform,) and exported.nr_devices == 8


def test_fused_attention_lowers_where_cudnn_is(monkeypatch):
    """The kernel that a GPU takes for bfloat16, forward and backward.

    Without stand-ins it cannot be lowered elsewhere: JAX asks the device for its kind and the
    installed cuDNN for its version while it traces. `jax.export` refuses it everywhere, for NVIDIA
    guarantees nothing about such calls between versions; and on a mesh XLA puts it in only when it
    partitions the program.
    """
    chosen = transformer.attention_kernel
    gpu = types.SimpleNamespace(device_kind="NVIDIA H200", compute_capability="9.0")
    monkeypatch.setattr(
        transformer, "attention_kernel", lambda q, k, _, **mask: chosen(q, k, gpu, **mask)
    )
    with pytest.raises(RuntimeError, match="cuDNN is not detected"):
        traced(1)
    kernels = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{kernels}.check_cudnn_version", lambda: 91000)
    text = traced(1).lower(lowering_platforms=("cuda",)).as_text()
    found = set(re.findall(r"__cudnn\$\w+", text))
    assert found == {"__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"}
