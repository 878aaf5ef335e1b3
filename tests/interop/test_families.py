"""Text towers of published families: features, ten steps of fine-tuning, and export.

Built by open_clip, from its own configurations, and by transformers with random weights. Width and
vocabulary are cut here; with `PUBLISHED=1`, `-m ""` and `--junitxml=FILE` all but the depth is as
published, and FILE has the differences. Memory: up to 16 GiB, for MetaCLIP 2's vocabulary.
"""

import copy
import gc
import json
import os
import resource

import jax
import numpy as np
import optax
import pytest
import torch
import transformers
from interop import libraries, tiny
from safetensors import safe_open
from safetensors.torch import save_file

from negclip_jax.interop import huggingface, open_clip, readers
from negclip_jax.models import clip
from negclip_jax.training import patterns
from negclip_jax.training.objectives import check_objective
from negclip_jax.training.step import Objective, TrainState, make_train_step

package = libraries.load("open_clip")
VISION = ("visual.", "vision_model.", "visual_projection.")  # names of a vision half
PUBLISHED = bool(os.environ.get("PUBLISHED"))
NAMES = {
    "PE-Core-T-16-384": "context 32",
    "MobileCLIP-S1": "both directions",
    "ViT-B-16-SigLIP2": "a projection with a bias, and the sigmoid loss",
    "ViT-H-14-worldwide-quickgelu": "the first token 2, another vocabulary",
}
OTHERS = (
    *("PE-Core-bigG-14-448", "MobileCLIP2-B", "MobileCLIP2-S4", "EVA02-L-14", "ViTamin-B-LTT"),
    *("convnext_base_w", "RN50-quickgelu", "ViT-B-16-SigLIP", "ViT-bigG-14-CLIPA", "ViT-B-16"),
    *("ViT-L-14-worldwide", "ViT-gopt-16-SigLIP2-256", "ViT-L-14-CLIPA"),
)


# Of transformers: its class and what differs from that class's defaults, in both towers.
TRANSFORMERS = {
    "clip-ViT-L-14": (
        "CLIP",
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
        | {"projection_dim": 768},
        {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16},
    ),
    "LongCLIP": ("CLIP", {"max_position_embeddings": 248, "eos_token_id": 2}, {}),
    "metaclip_2-H-14": (
        "MetaClip2",
        {"vocab_size": 901_629, "hidden_size": 1024, "intermediate_size": 4096}
        | {"num_attention_heads": 16, "hidden_act": "quick_gelu", "eos_token_id": 2}
        | {"projection_dim": 1024},
        {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16}
        | {"patch_size": 14},
    ),
    "siglip-so400m": (
        "Siglip",
        SO400M := {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16},
        SO400M | {"patch_size": 14},
    ),
    "siglip2-naflex": ("Siglip2", {"vocab_size": 256_000}, {}),
    "siglip2-naflex-so400m": ("Siglip2", SO400M | {"vocab_size": 256_000}, SO400M),
}


class OtherVision(torch.nn.Module):
    """In the place of timm's towers, which need not be installed."""

    image_size = 16

    def __init__(self, *_, **__):
        super().__init__()
        self.trunk = torch.nn.Linear(4, 3)
        self.register_buffer("count", torch.tensor(7))


def made(name):
    """A configuration of open_clip with two layers."""
    model = copy.deepcopy(package.get_model_config(name))
    text, vision = model["text_cfg"], model["vision_cfg"]
    text["layers"] = 2
    if not PUBLISHED:
        text |= {"vocab_size": 600, "width": 48, "heads": 3}
        model["embed_dim"] = 48 if text.get("proj_type") == "none" else 32
    if "timm_model_name" not in vision:
        is_resnet = isinstance(vision.get("layers"), list)
        vision["layers"] = [1] * 4 if is_resnet else 1
        if not PUBLISHED:
            vision |= {"width": 64, "image_size": 32, "head_width": 32}
    return model


def captions(text, rows=6):
    """Ids with an end token and padding after it, by whichever rule a `text_cfg` reads them."""
    length, end = text.get("context_length", 77), text.get("eos_id", 2)
    last = text.get("vocab_size", 49408) - 1
    ids = np.random.default_rng(0).integers(3, min(last, 590), (rows, length))
    for row, place in zip(ids, np.linspace(2, length - 1, rows).astype(int), strict=True):
        row[place], row[place + 1 :] = end if text.get("pool_type") == "eos" else last, 0
    return ids


def ten_steps(config, params, features, ids):
    """Losses and parameters of ten steps of ours, images as features."""
    graphdef, abstract = clip.abstract(config)
    name = check_objective(config.objective, abstract)
    objective = Objective(graphdef, (0.5,) * 3, (0.5,) * 3, name=name)
    tx = optax.adamw(1e-3, eps=1e-3, weight_decay=0.0)
    frozen = {k: v for k, v in params.items() if k in ("vision", "visual_projection")}
    trained = {k: v for k, v in params.items() if k not in frozen}
    if is_large(config.text.vocab_size * config.text.width):
        text = dict(trained["text"])
        frozen["text"] = {"token_embedding": jax.numpy.asarray(text.pop("token_embedding"))}
        trained["text"] = text
    options = {"schedule": lambda _: 1e-3, "logit_scale_max": None, "ema_decay": None}
    step = jax.jit(make_train_step(objective, tx, **options))
    state, losses = TrainState.create(jax.tree.map(jax.numpy.asarray, trained), tx, ema=False), []
    for _ in range(10):
        state, metrics = step(state, frozen, {"feature": features, "text": ids})
        losses.append(float(metrics["loss"]))
    return losses, patterns.merge(frozen, jax.device_get(state.params))


def is_large(numbers):
    """Whether a token embedding stays as it was: training MetaCLIP 2's would take 15 GB."""
    return numbers > 250e6


def their_ten_steps(model, encode, features, ids):
    """Losses of the same of another library's text tower, with open_clip's losses."""
    images = torch.nn.functional.normalize(torch.tensor(features), dim=-1)
    for name, parameter in model.named_parameters():
        large = "token_embedding" in name and is_large(parameter.numel())
        parameter.requires_grad_(not (name.startswith(VISION) or large))
    trained = [p for p in model.parameters() if p.requires_grad]
    tx = torch.optim.AdamW(trained, 1e-3, eps=1e-3, weight_decay=0.0)
    losses = []
    for _ in range(10):
        texts = torch.nn.functional.normalize(encode(model, torch.tensor(ids)), dim=-1)
        if getattr(model, "logit_bias", None) is None:
            loss = package.ClipLoss()(images, texts, model.logit_scale.exp())
        else:
            loss = package.loss.SigLipLoss()(
                images, texts, model.logit_scale.exp(), model.logit_bias
            )
        tx.zero_grad()
        loss.backward()
        tx.step()
        losses.append(loss.item())
    return losses


def agrees(model, encode, source, weights, ids, save, load, record):
    """Reads, trains and writes a model as its library does.

    Args:
      model, encode: of the library; `encode(model, ids)` gives its text features.
      source, weights: folder to save it in and name of its file.
      save, load: `save(out, config, params, info)` of this package, `load(out)` of the library.
      record: takes name and value of each figure.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)

    def texts_of(model):
        with torch.no_grad():
            return encode(model, torch.tensor(ids)).numpy()

    def compared(what, ours, theirs):
        apart = tiny.difference(ours, theirs) / max(1, np.abs(theirs).max())
        record(what, f"{apart:.1e}")
        assert apart < 1e-5

    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, source / weights)
    expected = texts_of(model)
    rng = np.random.default_rng(1)
    features = rng.standard_normal(expected.shape).astype(np.float32)
    their_losses = their_ten_steps(model, encode, features, ids)
    del model
    gc.collect()

    config, params, info = readers.read_any(source)
    compared("features", tiny.our_texts(config, params, ids), expected)
    losses, trained = ten_steps(config, params, features, ids)
    record("losses", f"{np.abs(np.array(losses) / their_losses - 1).max():.1e}")
    np.testing.assert_allclose(losses, their_losses, rtol=1e-4)
    assert losses[-1] < losses[0] - 1e-3
    del params

    # The vision half as it was, the text half as trained.
    out = save(source.parent / "out", config, trained, info)
    before, after = (safe_open(folder / weights, framework="pt") for folder in (source, out))
    names = list(before.keys())
    assert set(names) == set(after.keys())
    same = {n: torch.equal(before.get_tensor(n), after.get_tensor(n)) for n in names}
    vision = [equal for name, equal in same.items() if name.startswith(VISION)]
    assert vision and all(vision)
    record("vision_tensors_bit_equal", len(vision))
    text = [n for n in names if "final" in n and not n.startswith(VISION)]
    assert text and not any(same[name] for name in text)
    ours = tiny.our_texts(config, trained, ids)
    del trained
    gc.collect()
    compared("export", ours, texts_of(load(out).eval()))
    record("peak_MiB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(n, marks=() if "SigLIP" in n else pytest.mark.slow) for n in NAMES),
        *(pytest.param(n, marks=pytest.mark.long) for n in OTHERS),
    ],
)
def test_a_family_of_open_clip(name, tmp_path, monkeypatch, record_property):
    monkeypatch.setattr(package.model, "TimmModel", OtherVision)
    described, source = made(name), tmp_path / "source"
    source.mkdir()
    content = {"model_cfg": described, "preprocess_cfg": {}}
    (source / open_clip.CONFIG).write_text(json.dumps(content))

    def save(out, config, params, info):
        return open_clip.save(out, config, params, other_vision=info.other_vision)

    agrees(
        package.create_model(f"local-dir:{source}").eval(),
        lambda model, ids: model.encode_text(ids),
        source,
        open_clip.WEIGHTS[0],
        captions(described["text_cfg"]),
        save,
        lambda out: package.create_model(f"local-dir:{out}"),
        record_property,
    )


# Small, the others are like one of these, or like a model of open_clip above.
TOLD_APART = ("LongCLIP", "siglip-so400m", "siglip2-naflex")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n in TOLD_APART else pytest.mark.long)
        for n in TRANSFORMERS
    ],
)
def test_a_family_of_transformers(name, tmp_path, record_property):
    kind, text, vision = TRANSFORMERS[name]
    if not PUBLISHED:
        small = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3}
        text, vision = text | small | {"vocab_size": 600}, vision | small
        text |= {"eos_token_id": 599} if text.get("eos_token_id", 0) > 2 else {}
        vision["image_size"] = 28 if vision.get("patch_size") == 14 else 32
    layers, source = {"num_hidden_layers": 2}, tmp_path / "source"
    vision = {
        key: v for key, v in vision.items() if not (kind == "Siglip2" and key == "image_size")
    }
    common = {key: text.get(key, 512) for key in ("projection_dim",) if "iglip" not in kind}
    config = getattr(transformers, f"{kind}Config")(
        text_config=text | layers | common,
        vision_config=vision | {"num_hidden_layers": 1} | common,
        **common,
    )
    config.save_pretrained(source)
    cls = getattr(transformers, f"{kind}Model")

    def encode(model, ids):
        found = model.get_text_features(ids)
        return getattr(found, "pooler_output", found)

    def save(out, config, params, info):
        other = info.other_vision
        assert (other is None) == (kind != "Siglip2")
        return huggingface.save(out, config, params, base=source, other_vision=other)

    rule = {"vocab_size": config.text_config.vocab_size}
    rule |= {"context_length": config.text_config.max_position_embeddings}
    rule |= {"pool_type": "eos", "eos_id": 2} if kind == "MetaClip2" else {}
    ids, options = captions(rule), {"output_loading_info": True}

    def load(out):
        model, info = cls.from_pretrained(out, **options)
        assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        return model

    agrees(
        cls(config).eval(), encode, source, "model.safetensors", ids, save, load, record_property
    )
