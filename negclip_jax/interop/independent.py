"""Features of a checkpoint, computed apart from this package's readers and models.

A reader that takes a checkpoint for another model writes that other model, and reads it back as it
was: only a second reading can see it. That is the library whose layout it is, where it is
installed, and otherwise NumPy, straight from tensor names and the configuration's own words.
"""

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from negclip_jax.interop.files import StoredTensor, find_weights
from negclip_jax.interop.tensors import import_torch, open_file, open_weights
from negclip_jax.models.transformer import ACTIVATIONS

Features = tuple[np.ndarray, ...]
# Of transformers, by the model_type of config.json.
CLASSES = {"clip": "CLIPModel", "metaclip_2": "MetaClip2Model", "siglip": "SiglipModel"}
CLASSES |= {"siglip2": "Siglip2Model"}
_ALONE = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.pt")
_OPENAI_WIDTHS = (768, 1024)  # vision towers of OpenAI's, of whose code heads of 64 are right
# transformers' names, part by part, to OpenAI's, which open_clip has too.
_TO_OPENAI = {
    "text_model.encoder.layers.": "transformer.resblocks.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "layer_norm": "ln_",
    "self_attn.": "attn.",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.final_ln_": "ln_final",  # its layer_norm is ln_ already
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.embeddings.patch_embedding": "visual.conv1",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
}


def features(
    path: Path, pixels: np.ndarray | None, ids: np.ndarray, architecture: str = ""
) -> tuple[Features, str]:
    """Projected image and text features of a checkpoint, and what computed them.

    Args:
      path: directory of transformers, of open_clip or with OpenAI's `model.pt`, or a file of one.
      pixels: float `[B, H, W, 3]`; None where the vision tower is not to be read, and the result
        is that of the texts alone.
      ids: int `[B, T]`.
      architecture: class of transformers, of which one tower alone is then there, and the result.

    Returns features of images and of texts, float32 `[B, D]`, and a name such as "transformers
    5.0". Raises LookupError where nothing here can compute them.
    """
    folder, weights = (path, None) if path.is_dir() else (path.parent, path)
    if weights is None and find_weights(folder) is None:
        weights = next((path / name for name in _ALONE if (path / name).is_file()), None)
    described = folder / "open_clip_config.json"
    with contextlib.suppress(Exception):  # absent, or of a version that does not read this
        torch = import_torch("a second reading needs")
        nchw = None if pixels is None else torch.tensor(pixels).permute(0, 3, 1, 2)
        tokens = torch.tensor(ids, dtype=torch.int64)
        silence = io.StringIO()  # progress bars and warnings of other libraries
        with contextlib.redirect_stderr(silence), torch.no_grad():
            if weights is None:
                found = _of_transformers(torch, folder, nchw, tokens, architecture)
            else:
                found = _of_open_clip(torch, weights, described, nchw, tokens)
        return tuple(x.float().numpy() for x in found[:-1]), found[-1]
    try:
        if architecture:
            raise LookupError("one tower is read by transformers alone")
        stored = open_weights(folder) if weights is None else open_file(weights)[0]
        return _by_hand(folder, stored, pixels, ids), "NumPy, straight from the files"
    except Exception as error:
        raise LookupError(f"{path}: {error}") from error


def _of_transformers(torch: Any, folder: Path, nchw: Any, tokens: Any, architecture: str) -> tuple:
    import transformers

    kind = json.loads((folder / "config.json").read_text())["model_type"]
    cls = getattr(transformers, architecture or CLASSES[kind])
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        model = cls.from_pretrained(folder, dtype=torch.float32).eval()
    finally:  # its warnings are the caller's again
        transformers.utils.logging.set_verbosity(before)
    name = f"transformers {transformers.__version__}"
    if architecture:
        out = model(tokens if "Text" in architecture else nchw)
        names = ("text_embeds", "image_embeds", "pooler_output")
        return next(out[key] for key in names if key in out), name
    images = () if nchw is None else (model.get_image_features(nchw),)
    found = *images, model.get_text_features(tokens)
    return *(getattr(x, "pooler_output", x) for x in found), name


def _of_open_clip(torch: Any, weights: Path, described: Path, nchw: Any, tokens: Any) -> tuple:
    import open_clip

    stored = {name: tensor.read() for name, tensor in open_file(weights)[0].items()}
    state = {name: torch.tensor(x.astype(np.float32)) for name, x in stored.items()}
    if described.is_file():
        config = json.loads(described.read_text())
        config = config.get("model_cfg", config)
        custom = config.pop("custom_text", False) and any(n.startswith("text.") for n in state)
        if nchw is None:  # a small one in its place: timm's need not be installed
            config["vision_cfg"] = {"layers": 1, "width": 64, "patch_size": 8, "image_size": 8}
            state = {n: x for n, x in state.items() if not n.startswith("visual.")}
        model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    elif stored["visual.ln_post.weight"].shape[0] in _OPENAI_WIDTHS:
        model = open_clip.model.build_model_from_openai_state_dict(dict(state)).float()
    else:
        raise LookupError("OpenAI has no model of this size")
    model.eval().load_state_dict(state, strict=False)
    found = () if nchw is None else (model.encode_image(nchw),)
    return *found, model.encode_text(tokens), f"open_clip {open_clip.__version__}"


def _by_hand(
    folder: Path, opened: Mapping[str, StoredTensor], pixels: np.ndarray | None, ids: np.ndarray
) -> Features:
    """The towers of a CLIP in NumPy, as Radford et al. (2021) and the configuration say."""
    read = {n: x for n, x in opened.items() if pixels is not None or not n.startswith("visual.")}
    stored = {n.removeprefix("text."): x.read().astype(np.float32) for n, x in read.items()}
    if "visual_projection.weight" in stored:
        for old, new in _TO_OPENAI.items():
            stored = {name.replace(old, new): x for name, x in stored.items()}
        stored["text_projection"] = stored["text_projection.weight"].T
        stored["visual.proj"] = stored["visual_projection.weight"].T
        for name in [name for name in stored if ".q_proj." in name]:
            parts = [stored[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            stored[name.replace(".q_proj.", ".in_proj_")] = np.concatenate(parts)
    width = 0 if pixels is None else stored["visual.ln_post.bias"].size
    text, vision = _said(folder, stored["ln_final.bias"].size, width)

    def norm(name: str, x: np.ndarray, eps: float) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        return x * stored[f"{name}.weight"] + stored[f"{name}.bias"]

    def dense(name: str, x: np.ndarray, mark: str = ".") -> np.ndarray:
        return x @ stored[f"{name}{mark}weight"].T + stored[f"{name}{mark}bias"]

    def blocks(tower: str, x: np.ndarray, said: dict, causal: bool) -> np.ndarray:
        length, block, i = x.shape[1], f"{tower}.resblocks.0", 0
        split = (len(x), length, 3, said["heads"], -1)
        while f"{block}.ln_1.weight" in stored:
            qkv = dense(f"{block}.attn.in_proj", norm(f"{block}.ln_1", x, said["eps"]), "_")
            q, k, v = np.moveaxis(qkv.reshape(split), 2, 0).swapaxes(2, 3)
            scores = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1])
            if causal:
                scores += np.triu(np.full((length, length), -np.inf), 1)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = scores / scores.sum(-1, keepdims=True) @ v
            mixed = dense(f"{block}.attn.out_proj", mixed.swapaxes(1, 2).reshape(x.shape))
            x = x + mixed * stored.get(f"{block}.ls_1.gamma", 1)
            h = dense(f"{block}.mlp.c_fc", norm(f"{block}.ln_2", x, said["eps"]))
            h = dense(f"{block}.mlp.c_proj", np.asarray(ACTIVATIONS[said["act"]](h)))
            x = x + h * stored.get(f"{block}.ls_2.gamma", 1)
            i += 1
            block = f"{tower}.resblocks.{i}"
        return x

    x = stored["token_embedding.weight"][ids] + stored["positional_embedding"][: ids.shape[1]]
    x = norm("ln_final", blocks("transformer", x, text, text["causal"]), text["eps"])
    ends = {
        "argmax": np.argmax(ids, axis=1),
        "eos": np.argmax(ids == text["end"], axis=1),
        "first": 0,
        "last": ids.shape[1] - 1,
    }[text["pool"]]
    pooled = x[np.arange(len(ids)), ends]
    if "text_projection.bias" in stored:
        pooled = dense("text_projection", pooled)
    elif "text_projection" in stored:
        pooled = pooled @ stored["text_projection"]
    if pixels is None:
        return (pooled,)
    patch = stored["visual.conv1.weight"]
    size, grid = patch.shape[-1], pixels.shape[1] // patch.shape[-1]
    cut = pixels[:, : grid * size, : grid * size].reshape(len(pixels), grid, size, grid, size, 3)
    patches = np.einsum("bhpwqc,ocpq->bhwo", cut, patch).reshape(len(pixels), grid * grid, -1)
    start = np.broadcast_to(stored["visual.class_embedding"], (len(pixels), 1, patches.shape[-1]))
    x = np.concatenate([start, patches], axis=1) + stored["visual.positional_embedding"]
    x = blocks("visual.transformer", norm("visual.ln_pre", x, vision["eps"]), vision, causal=False)
    return norm("visual.ln_post", x[:, 0], vision["eps"]) @ stored["visual.proj"], pooled


def _said(folder: Path, text_width: int, vision_width: int) -> list[dict[str, Any]]:
    """Activation, epsilon and heads of both towers, pooling and mask of the text tower."""
    open_clip, config = folder / "open_clip_config.json", folder / "config.json"
    causal, pool = True, "argmax"
    if open_clip.is_file():
        model = json.loads(open_clip.read_text())
        model = model.get("model_cfg", model)
        towers = model["text_cfg"], model["vision_cfg"]
        plain = ["gelu_pytorch_tanh" if t.get("act_kwargs") else "gelu" for t in towers]
        acts = ["quick_gelu"] * 2 if model.get("quick_gelu") else plain
        eps = [(t.get("norm_kwargs") or {}).get("eps", 1e-5) for t in towers]
        heads = towers[0].get("heads", 8), vision_width // towers[1].get("head_width", 64)
        end, pool = towers[0].get("eos_id", 2), towers[0].get("pool_type", "argmax")
        causal = not towers[0].get("no_causal_mask", False)
    elif config.is_file():
        model = json.loads(config.read_text())
        sections = ("text_config", "vision_config")
        towers = [model.get(f"{n}_dict") or model.get(n) or {} for n in sections]
        acts = [t.get("hidden_act", "quick_gelu") for t in towers]
        eps = [t.get("layer_norm_eps", 1e-5) for t in towers]
        heads = [t.get("num_attention_heads", n) for t, n in zip(towers, (8, 12), strict=True)]
        end = towers[0].get("eos_token_id", 49407)
        is_largest = end == 2 and model.get("model_type") != "metaclip_2"
        pool = "argmax" if is_largest else "eos"
    elif vision_width in _OPENAI_WIDTHS:
        acts, eps, end = ["quick_gelu"] * 2, [1e-5] * 2, None
        heads = text_width // 64, vision_width // 64
    else:
        raise LookupError("no configuration stands beside it")
    return [
        {"act": a, "eps": e, "heads": h, "end": end, "pool": pool, "causal": causal}
        for a, e, h in zip(acts, eps, heads, strict=True)
    ]
