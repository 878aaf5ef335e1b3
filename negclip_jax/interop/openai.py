"""State dicts of OpenAI's clip package, both ways.

    stored, _ = tensors.open_file(Path("ViT-B-32.pt"))
    config = infer_config(stored, "ViT-B-32.pt")
    params = load_params(stored, config, "ViT-B-32.pt")
    save("exported", config, params)

`KEYS` is the only place that knows OpenAI's tensor names, which open_clip kept. The file says
nothing but shapes: activation, epsilon, width of a head and the rule for the end token are those
of the package's code (https://github.com/openai/CLIP, `clip/model.py`), and a model with others
cannot be written in this layout. NegationCLIP's released checkpoints are such files.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from negclip_jax.data.images import CLIP_MEAN, CLIP_STD
from negclip_jax.interop import writing
from negclip_jax.interop.config import preprocessor_of, write_config
from negclip_jax.interop.files import CheckpointError, StoredTensor, problem_report
from negclip_jax.interop.parameters import (
    CONV,
    Key,
    export_tensors,
    fused,
    linear,
    norm,
    read_params,
    require_clip,
)
from negclip_jax.interop.tensors import import_torch
from negclip_jax.models.clip import CLIPConfig, TextConfig, VisionConfig

WEIGHTS = "model.pt"
HIDDEN_ACT = "quick_gelu"
_HEAD_WIDTH, _MLP_RATIO, _EPSILON = 64, 4, 1e-5
# By the width of vision towers that OpenAI has none of: open_clip's ViT-H, g, bigG and e.
OTHER_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}
_VOCABULARY = 49408
# Constants of the released archives, which the package drops as well.
_BUFFERS = frozenset(("input_resolution", "context_length", "vocab_size"))
_ADVICE = (
    "The weights must be those of one whole CLIP with a vision transformer, under the names of "
    "OpenAI's clip or of open_clip."
)


def _blocks(name: str, path: str) -> tuple[Key, ...]:
    name, path = f"{name}.resblocks.{{layer}}", f"{path}/blocks"
    return (
        *norm(f"{name}.ln_1", f"{path}/ln_1"),
        *fused(f"{name}.attn.in_proj", f"{path}/attn"),
        *linear(f"{name}.attn.out_proj", f"{path}/attn/out"),
        *norm(f"{name}.ln_2", f"{path}/ln_2"),
        *linear(f"{name}.mlp.c_fc", f"{path}/mlp/fc1"),
        *linear(f"{name}.mlp.c_proj", f"{path}/mlp/fc2"),
    )


TEXT_KEYS = (
    Key("positional_embedding", "text/position_embedding"),
    Key("text_projection", "text_projection"),
    Key("token_embedding.weight", "text/token_embedding"),
    *_blocks("transformer", "text"),
    *norm("ln_final", "text/ln_final"),
)
OTHER_KEYS = (
    Key("logit_scale", "logit_scale"),
    Key("visual.class_embedding", "vision/class_embedding"),
    Key("visual.positional_embedding", "vision/position_embedding"),
    Key("visual.proj", "visual_projection"),
    Key("visual.conv1.weight", "vision/patch_embedding", CONV),
    *norm("visual.ln_pre", "vision/ln_pre"),
    *_blocks("visual.transformer", "vision"),
    *norm("visual.ln_post", "vision/ln_post"),
)
KEYS = TEXT_KEYS + OTHER_KEYS


def infer_config(stored: Mapping[str, StoredTensor], where: Path | str) -> CLIPConfig:
    """The model that OpenAI's clip builds around a state dict: shapes, and its own constants.

    Follows `build_model` of `clip/model.py`: heads of width 64, quick_gelu, epsilon 1e-5, the
    state at the largest token id. `stored` are tensors under OpenAI's names.

    Raises CheckpointError for no CLIP, one with a ResNet, or shapes that fit no vision transformer.
    """
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    other = [name for name in shapes if name.startswith(("visual.trunk.", "visual.layer1."))]
    if other:
        tower = "timm's" if other[0].startswith("visual.trunk.") else "a ResNet"
        raise CheckpointError(
            f"{where}: its vision tower is {tower}, whose text tower is read with a configuration "
            "alone: put its open_clip_config.json beside it (or under that name the "
            "model_configs/NAME.json of open_clip); a SigLIP is also read in transformers' "
            "form (model_type siglip)"
        )
    try:
        text_width, vision_width = shapes["ln_final.weight"][0], shapes["visual.ln_post.weight"][0]
        patch = shapes["visual.conv1.weight"][-1]
        grid = round((shapes["visual.positional_embedding"][0] - 1) ** 0.5)
        vocabulary, context = shapes["token_embedding.weight"][0], shapes["positional_embedding"][0]
        text, vision = (_tower(shapes, prefix) for prefix in ("transformer", "visual.transformer"))
        projection_dim = shapes["text_projection"][1]
    except (KeyError, IndexError) as error:
        problems = {"missing or without shape": [str(error)], "it holds": shapes}
        raise CheckpointError(problem_report(where, problems, _ADVICE)) from error
    if vocabulary > _VOCABULARY:
        raise CheckpointError(
            f"{where} has {vocabulary:,} tokens, and OpenAI's rule for the end of a text is of its "
            f"{_VOCABULARY:,}: put its open_clip_config.json beside it"
        )
    try:
        return CLIPConfig(
            text=TextConfig(
                width=text_width,
                heads=text_width // _HEAD_WIDTH or 1,
                vocab_size=vocabulary,
                context_length=context,
                eos_token_id=2,  # transformers' word for it, so that a config.json is equal
                pooling="argmax",
                **text,
            ),
            vision=VisionConfig(
                width=vision_width,
                heads=vision_width // OTHER_HEAD_WIDTHS.get(vision_width, _HEAD_WIDTH) or 1,
                patch_size=patch,
                image_size=patch * grid,
                **vision,
            ),
            projection_dim=projection_dim,
        )
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}; heads of OpenAI's clip are 64 wide") from error


def _tower(shapes: dict[str, tuple[int, ...]], prefix: str) -> dict[str, int]:
    layer = re.compile(rf"{re.escape(prefix)}\.resblocks\.(\d+)\.")
    layers = {match[1] for name in shapes if (match := layer.match(name))}
    mlp_width = shapes[f"{prefix}.resblocks.0.mlp.c_fc.weight"][0]
    return {"layers": len(layers), "mlp_width": mlp_width}


def load_params(
    stored: Mapping[str, StoredTensor],
    config: CLIPConfig,
    where: Path | str,
    *,
    keys: tuple[Key, ...] = KEYS,
    authority: str = "the model",
) -> dict[str, Any]:
    """Tensors under OpenAI's names in the tree of `models.clip.abstract(config)`.

    See `parameters.read_params`.
    """
    tensors = {name: tensor for name, tensor in stored.items() if name not in _BUFFERS}
    return read_params(tensors, keys, config, where=where, authority=authority, advice=_ADVICE)


def write(stage: Path, export: writing.Export) -> None:
    """Writes a directory with `model.pt`, a bare state dict for `clip.load` and open_clip.

    A pickle, because the package reads nothing else. `config.json`, tokenizer and preprocessor
    stand beside it in Hugging Face's form, so that this project reads the directory back as it
    was. The weights are float32 by default. A model that OpenAI's code would run wrongly is
    refused.
    """
    config, dtype = export.config, export.dtype or "float32"
    preprocessor = export.preprocessor or preprocessor_of(export.base, config)
    require_clip(config, "OpenAI's layout")
    reasons = [
        f"the {name} tower's {what} is {value} where its code has {expected}"
        for name, tower in (("text", config.text), ("vision", config.vision))
        for what, value, expected in (
            ("activation", tower.hidden_act, HIDDEN_ACT),
            ("layer_norm_eps", tower.layer_norm_eps, _EPSILON),
            ("width of a head", tower.width // tower.heads, _HEAD_WIDTH),
            ("width of the MLP", tower.mlp_width, _MLP_RATIO * tower.width),
        )
        if value != expected
    ]
    end, last = config.text.eos_token_id, config.text.vocab_size - 1
    if config.text.pooling != "argmax" and end != last:
        reasons.append(f"the end token is {end} where its code takes the largest id, {last}")
    if config.vision.image_size % config.vision.patch_size:
        reasons.append(f"images of {config.vision.image_size} pixels are no multiple of a patch")
    if (preprocessor.mean, preprocessor.std) != (CLIP_MEAN, CLIP_STD):
        reasons.append("its preprocessing has CLIP's own mean and std only")
    if reasons:
        raise CheckpointError(
            f"OpenAI's clip cannot run this model: {'; '.join(reasons)}. "
            "Export it with --layout=huggingface or --layout=open_clip"
        )
    torch = import_torch("a file for OpenAI's clip needs")
    places, take = export_tensors(export.params, config, KEYS)
    write_config(stage, export, dtype)
    # float32 first: numpy's bfloat16 is unknown to torch.
    state = {
        name: torch.tensor(writing.converted(name, take(name), dtype).astype("float32"))
        for name in places
    }
    torch.save({k: v.to(getattr(torch, dtype)) for k, v in state.items()}, stage / WEIGHTS)


save = writing.saver(write)
