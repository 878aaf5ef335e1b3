"""Every configuration: what it resolves to, what it does to each parameter, and that it runs.

`tests/golden/` holds the resolved text and a table of parameters for each variant, so that a
change of a rule is a change of a file that a person reviews. `UPDATE_GOLDEN=1 pytest
tests/test_configs.py` writes them anew.
"""

import dataclasses
import importlib
import os
from collections.abc import Iterable

import jax
import numpy as np
import pytest
from flax import traverse_util
from tiny_runs import ROOT, read_metrics

from configs import common, negationclip, quickstart, truth
from negclip_jax.models import clip, siglip
from negclip_jax.runtime import sharding
from negclip_jax.training import optim, patterns
from negclip_jax.training.config import check_settings
from negclip_jax.training.loop import train

REQUIRED = ("model.checkpoint", "data.pairs", "data.images", "data.statements")
GOLDEN = ROOT / "tests" / "golden"
LARGE_TEXT = clip.TextConfig(width=768, heads=12, mlp_width=3072)
LARGE_VISION = {"width": 1024, "layers": 24, "heads": 16, "mlp_width": 4096, "patch_size": 14}
B_16 = clip.CLIPConfig(vision=clip.VisionConfig(patch_size=16))
L_14 = clip.CLIPConfig(
    text=LARGE_TEXT, vision=clip.VisionConfig(**LARGE_VISION), projection_dim=768
)
L_14_336 = clip.CLIPConfig(
    text=LARGE_TEXT,
    vision=clip.VisionConfig(**LARGE_VISION, image_size=336),
    projection_dim=768,
)
# Google's configurations of the released SigLIP 2.
GEMMA = {"vocab_size": 256_000}
SIGLIP_B_16 = siglip.SigLIPConfig(
    text=dataclasses.replace(siglip.SigLIPTextConfig(), **GEMMA),
    vision=dataclasses.replace(siglip.SigLIPVisionConfig(), patch_size=16, image_size=224),
)
SO400M = {"width": 1152, "layers": 27, "heads": 16, "mlp_width": 4304}
SIGLIP_SO400M = siglip.SigLIPConfig(
    text=dataclasses.replace(siglip.SigLIPTextConfig(), **GEMMA, **SO400M),
    vision=dataclasses.replace(
        siglip.SigLIPVisionConfig(), **SO400M, patch_size=14, image_size=384
    ),
    projection_dim=1152,
)
# OpenAI's architectures by variant; the quickstart's rules are shown on the smallest of them.
ARCHITECTURES = {
    "negationclip:vit_b_32": clip.CLIPConfig(),
    "negationclip:vit_b_16": B_16,
    "negationclip:vit_l_14": L_14,
    "negationclip:vit_l_14_336": L_14_336,
    "truth:vit_b_32": clip.CLIPConfig(),
    "truth:vit_b_16": B_16,
    "truth:vit_l_14": L_14,
    "truth:vit_l_14_336": L_14_336,
    "truth:siglip2_b_16": SIGLIP_B_16,
    "truth:siglip2_so400m_14": SIGLIP_SO400M,
    "quickstart:pretrain": clip.CLIPConfig(),
    "quickstart:published": clip.CLIPConfig(),
    "quickstart:finetune": clip.CLIPConfig(),
    "debug": clip.CLIPConfig(),
}


def build(name: str):
    module, _, variant = name.partition(":")
    return importlib.import_module(f"configs.{module}").get_config(*([variant] if variant else []))


def describe(name: str) -> str:
    """The resolved configuration and one line for each group of equally treated parameters."""
    config = build(name)
    lines = [f"configs/{name.replace(':', '.py:')}", "", "CONFIGURATION", ""]
    lines += [f"{key} = {value!r}" for key, value in sorted(flat(config.to_dict()))]
    trained, frozen, table = parameters(config, ARCHITECTURES[name])
    lines += ["", f"PARAMETERS  ({trained:,} trained, {frozen:,} frozen; placed on 2 x 4 devices)"]
    return "\n".join([*lines, "", *table, ""])


def flat(section: dict, prefix: str = "") -> Iterable[tuple[str, object]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def parameters(config, architecture) -> tuple[int, int, list[str]]:
    _, abstract = clip.abstract(architecture)
    lora = {key: config.optim[key] for key in ("lora_rank", "lora_matrices")}
    abstract, mask = optim.adapted(abstract, config.optim.freeze, **lora)
    decay = patterns.resolve(abstract, config.optim.weight_decay_rules, "decay")
    rate = patterns.resolve(abstract, config.optim.lr_rules, "lr")
    rules = patterns.resolve(abstract, config.mesh.rules, "mesh")
    mesh = sharding.make_mesh(data=2, fsdp=4)
    placed = sharding.of_parameters(
        mesh, abstract, rules, min_shard_size=config.mesh.min_shard_size
    )
    rows, counts = [], {True: 0, False: 0}
    columns = [traverse_util.flatten_dict(tree) for tree in (mask, decay, rate, placed)]
    for path, leaf in sorted(traverse_util.flatten_dict(abstract).items()):
        is_trained, decays, rates, place = (column[path] for column in columns)
        names = patterns.names(path, leaf)
        settings = [per_layer(v, len(names)) for v in (is_trained, decays, rates)]
        for layers, (t, d, r) in runs(list(zip(*settings, strict=True))):
            counts[bool(t)] += leaf.size * len(layers) // len(names)
            shown = "/".join(path).replace("blocks/", f"blocks/{span(layers)}/")
            axes = f"fsdp on axis {len(place.spec) - 1}" if place.spec else "replicated"
            optimizer = f"decay {config.optim.weight_decay * d:g}  lr x{r:g}" if t else "frozen"
            shape = str(tuple(leaf.shape))
            rows.append(f"{shown:<40} {shape:<20} {axes:<16} {optimizer}")
    return counts[True], counts[False], rows


def per_layer(value, layers: int) -> list:
    return np.ravel(value).tolist() if isinstance(value, np.ndarray) else [value] * layers


def runs(settings: list[tuple]) -> Iterable[tuple[list[int], tuple]]:
    """Consecutive layers that are treated alike."""
    start = 0
    for end in range(1, len(settings) + 1):
        if end == len(settings) or settings[end] != settings[start]:
            yield list(range(start, end)), settings[start]
            start = end


def span(layers: list[int]) -> str:
    return f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else str(layers[0])


def test_every_variant_has_a_table():
    variants = [f"negationclip:{name}" for name in negationclip.VARIANTS]
    variants += [f"truth:{name}" for name in truth.VARIANTS]
    variants += [f"quickstart:{name}" for name in quickstart._VARIANTS] + ["debug"]
    assert sorted(variants) == sorted(ARCHITECTURES)
    files = {path.stem for path in (ROOT / "configs").glob("*.py")}
    files -= {"__init__", "common", "data_gen"}  # the last is about generation, not training
    assert files == {name.partition(":")[0] for name in variants}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_golden_tables(name):
    path = GOLDEN / f"{name.replace(':', '_')}.txt"
    described = describe(name)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(described)
    assert described == path.read_text(), "run again with UPDATE_GOLDEN=1 and review the difference"


@pytest.mark.parametrize(
    ("variant", "total", "trained"),
    [
        ("vit_b_32", 151_277_313, 63_427_073),
        ("vit_b_16", 149_620_737, 63_427_073),
        ("vit_l_14", 427_616_513, 123_648_769),
        ("vit_l_14_336", 427_944_193, 123_648_769),
    ],
)
def test_the_published_recipe_trains_the_text_tower(variant, total, trained):
    """Totals are those of OpenAI's models; of the text only the final LayerNorm is frozen."""
    name = f"negationclip:{variant}"
    count, count_frozen, rows = parameters(build(name), ARCHITECTURES[name])
    assert (count + count_frozen, count) == (total, trained)
    frozen = {row.split()[0] for row in rows if row.endswith("frozen")}
    names = {row.split()[0] for row in rows}
    vision = {n for n in names if n.startswith("vis")}
    assert frozen == vision | {"text/ln_final/scale", "text/ln_final/bias"}


def test_layers_that_differ_are_shown_apart():
    config = build("negationclip:vit_b_32")
    config.optim.freeze = ("text/blocks/([0-9]|10)/.*",)
    _, _, rows = parameters(config, clip.CLIPConfig())
    (first, second) = (row for row in rows if "text/blocks" in row and "fc1/kernel" in row)
    assert "text/blocks/0-10/mlp" in first and first.endswith("frozen")
    assert "text/blocks/11/mlp" in second and second.endswith("lr x1")


def test_adapters_of_some_layers_are_shown():
    """A table of LoRA: kernels frozen, adapters of the layers that a rule leaves."""
    config = build("negationclip:vit_b_32")
    config.optim.lora_rank = 4
    config.optim.freeze = ("vision/.*", "visual_projection", "text/blocks/[0-5]/.*")
    trained, frozen, rows = parameters(config, clip.CLIPConfig())
    assert frozen == 151_277_313 + 1 + 6 * 4 * (4 * (512 + 512) + 2 * (512 + 2048))
    assert trained == 6 * 4 * (4 * (512 + 512) + 2 * (512 + 2048))
    of_fc1 = [row.split() for row in rows if row.startswith("text/blocks") and "/fc1/" in row]
    shown = {row[0]: row[-1] for row in of_fc1 if "bias" not in row[0]}
    assert shown == {
        "text/blocks/0-11/mlp/fc1/kernel": "frozen",
        **{f"text/blocks/0-5/mlp/fc1/lora_{x}": "frozen" for x in "ab"},
        **{f"text/blocks/6-11/mlp/fc1/lora_{x}": "x1" for x in "ab"},
    }


def test_no_configuration_adds_a_key():
    declared = {key for key, _ in flat(common.base().to_dict())}
    for name in ARCHITECTURES:
        config = build(name)
        check_settings(dict(flat(config.to_dict())) | dict.fromkeys(REQUIRED, "x"))
        assert {key for key, _ in flat(config.to_dict())} == declared


@pytest.mark.parametrize("module", ["negationclip", "truth", "quickstart"])
def test_an_unknown_variant_is_refused(module):
    with pytest.raises(ValueError, match="unknown variant 'vit_b_31'; choose one of: "):
        build(f"{module}:vit_b_31")


# Slow ones, and variants that at tiny size differ in numbers alone, which the golden tables show.
NOT_FIRST = ("truth:vit_b_32", "quickstart:pretrain", "debug")
ALIKE = ("negationclip:vit_l_14", "negationclip:vit_l_14_336", "quickstart:published")


@pytest.mark.parametrize(
    "name",
    ["negationclip:vit_b_32", "quickstart:finetune"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in NOT_FIRST]
    + [pytest.param(name, marks=pytest.mark.long) for name in ALIKE],
)
def test_two_steps_at_tiny_size(name, short_run, tmp_path, one_device):
    config = build(name)
    settings = ("model.checkpoint", "data.pairs", "data.images", "train.batch_size", "data.threads")
    config.update_from_flattened_dict(
        {key: short_run[key] for key in settings}
        | {"train.total": "2 steps", "runtime.compilation_cache": None}
        | {"data.validation_fraction": 0.0, "log.tensorboard": False, "log.profile_steps": None}
        | ({"data.foils": 1} if build(name).train.objective == "truth" else {})
    )
    state = train(config, str(tmp_path))
    assert int(state.step) == 2
    metrics = read_metrics(tmp_path)
    assert np.isfinite(metrics[2]["loss"]) and metrics[2]["update_norm"] > 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state.params)))
