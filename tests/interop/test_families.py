"""Text towers of published families: features, ten steps of fine-tuning and export as open_clip.

Built from open_clip's own configurations with random weights. Width and vocabulary are cut here;
`PUBLISHED=1 pytest tests/interop/test_families.py -m ""` has all but the depth as published.
"""

import copy
import json
import os

import jax
import numpy as np
import optax
import pytest
import torch
from interop import libraries, tiny
from safetensors.torch import load_file, save_file

from negclip_jax.interop import open_clip, readers
from negclip_jax.models import clip
from negclip_jax.training.objectives import check_objective
from negclip_jax.training.step import Objective, TrainState, make_train_step

package = libraries.load("open_clip")
PUBLISHED = bool(os.environ.get("PUBLISHED"))
NAMES = {
    "PE-Core-T-16-384": "context 32",
    "MobileCLIP-S1": "both directions",
    "ViT-L-14-CLIPA": "both directions, the last position",
    "ViT-B-16-SigLIP2": "a projection with a bias, and the sigmoid loss",
    "ViT-H-14-worldwide-quickgelu": "the first token 2, another vocabulary",
}
OTHERS = (
    *("PE-Core-bigG-14-448", "MobileCLIP2-B", "MobileCLIP2-S4", "EVA02-L-14", "ViTamin-B-LTT"),
    *("convnext_base_w", "RN50-quickgelu", "ViT-B-16-SigLIP", "ViT-bigG-14-CLIPA", "ViT-B-16"),
    *("ViT-L-14-worldwide", "ViT-gopt-16-SigLIP2-256"),
)


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
    elif text.get("vocab_size", 0) > 300_000:  # its optimizer would take 15 GB
        text["vocab_size"] = 60_000
    if "timm_model_name" not in vision:
        is_resnet = isinstance(vision.get("layers"), list)
        vision |= {"layers": [1] * 4 if is_resnet else 1, "width": 64, "image_size": 32}
        vision["head_width"] = 32
    return model


def captions(model, rows=6):
    """Ids with an end token and padding after it, by whichever rule the model reads them."""
    text = model["text_cfg"]
    length, end = text.get("context_length", 77), text.get("eos_id", 2)
    last = text.get("vocab_size", 49408) - 1
    ids = np.random.default_rng(0).integers(3, min(last, 590), (rows, length))
    for row, place in zip(ids, np.linspace(2, length - 1, rows).astype(int), strict=True):
        row[place], row[place + 1 :] = end if text.get("pool_type") == "eos" else last, 0
    return ids


def ten_steps(config, params, features, ids):
    """Losses and text parameters of ten steps of ours, images as features."""
    graphdef, abstract = clip.abstract(config)
    name = check_objective(config.objective, abstract)
    objective = Objective(graphdef, (0.5,) * 3, (0.5,) * 3, name=name)
    tx = optax.adamw(1e-3, eps=1e-3, weight_decay=0.0)
    frozen = {k: v for k, v in params.items() if k in ("vision", "visual_projection")}
    trained = {k: v for k, v in params.items() if k not in frozen}
    options = {"schedule": lambda _: 1e-3, "logit_scale_max": None, "ema_decay": None}
    step = jax.jit(make_train_step(objective, tx, **options))
    state, losses = TrainState.create(jax.tree.map(jax.numpy.asarray, trained), tx, ema=False), []
    for _ in range(10):
        state, metrics = step(state, frozen, {"feature": features, "text": ids})
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params) | frozen


def their_ten_steps(model, features, ids):
    """The same of open_clip, with its own losses."""
    images = torch.nn.functional.normalize(torch.tensor(features), dim=-1)
    trained = [p for n, p in model.named_parameters() if not n.startswith("visual.")]
    tx = torch.optim.AdamW(trained, 1e-3, eps=1e-3, weight_decay=0.0)
    losses = []
    for _ in range(10):
        texts = model.encode_text(torch.tensor(ids), normalize=True)
        if model.logit_bias is None:
            loss = package.ClipLoss()(images, texts, model.logit_scale.exp())
        else:
            loss = package.loss.SigLipLoss()(
                images, texts, model.logit_scale.exp(), model.logit_bias
            )
        tx.zero_grad()
        loss.backward()
        tx.step()
        losses.append(float(loss))
    return losses


def texts_of(model, ids):
    with torch.no_grad():
        return model.encode_text(torch.tensor(ids)).numpy()


@pytest.mark.parametrize(
    "name", [*NAMES, *(pytest.param(n, marks=pytest.mark.long) for n in OTHERS)]
)
def test_a_family_is_read_trained_and_written(name, tmp_path, monkeypatch):
    monkeypatch.setattr(package.model, "TimmModel", OtherVision)
    described, source = made(name), tmp_path / "source"
    source.mkdir()
    content = {"model_cfg": described, "preprocess_cfg": {}}
    (source / open_clip.CONFIG).write_text(json.dumps(content))
    torch.manual_seed(0)
    theirs = package.create_model(f"local-dir:{source}").eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    save_file(
        {k: v.contiguous().clone() for k, v in theirs.state_dict().items()},
        source / open_clip.WEIGHTS[0],
    )
    ids = captions(described)
    config, params, info = readers.read_any(source)
    ours, expected = tiny.our_texts(config, params, ids), texts_of(theirs, ids)
    assert tiny.difference(ours, expected) < 1e-5 * max(1, np.abs(expected).max())

    rng = np.random.default_rng(1)
    features = rng.standard_normal((len(ids), config.projection_dim)).astype(np.float32)
    losses, trained = ten_steps(config, params, features, ids)
    np.testing.assert_allclose(losses, their_ten_steps(theirs, features, ids), rtol=1e-4)
    assert losses[-1] < losses[0] - 1e-3

    # The vision half as it was, the text half as trained.
    out = open_clip.save(tmp_path / "out", config, trained, other_vision=info.other_vision)
    before, after = (load_file(folder / open_clip.WEIGHTS[0]) for folder in (source, out))
    assert set(before) == set(after)
    halves = {n: torch.equal(t, after[n]) for n, t in before.items()}
    assert all(same for n, same in halves.items() if n.startswith("visual."))
    assert not any(same for n, same in halves.items() if "ln_final" in n)
    again = package.create_model(f"local-dir:{out}").eval()
    ours = tiny.our_texts(config, trained, ids)
    found = texts_of(again, ids)
    assert tiny.difference(found, ours) < 1e-5 * max(1, np.abs(found).max())
