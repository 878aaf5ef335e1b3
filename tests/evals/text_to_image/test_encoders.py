"""Which encoder a tower replaces, and why one cannot."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from tiny_pipelines import text_encoder_2

from evals.text_to_image import pipelines
from evals.text_to_image.pipelines import build, fitting_slot, read_slots, read_tower
from negclip_jax.common.errors import InputError
from negclip_jax.interop import diffusers
from negclip_jax.models.clip import TextConfig
from negclip_jax.models.siglip import SigLIPConfig, SigLIPTextConfig


@pytest.fixture(scope="module")
def tower(tiny_checkpoint):
    """Configuration, parameters and origin of a model that fits the first encoder."""
    return read_tower(str(tiny_checkpoint))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """The same for the second encoder of SDXL."""
    folder = tmp_path_factory.mktemp("wide")
    text_encoder_2(seed=7).save_pretrained(folder)
    return read_tower(str(folder))


def changed(tower, **fields):
    config, _, info = tower
    return dataclasses.replace(config, text=dataclasses.replace(config.text, **fields)), info


def fitting(directory, config, info, wanted=""):
    _, slots, width = read_slots(directory)
    return fitting_slot(slots, config, info, base="BASE", unet_width=width, wanted=wanted)


def edited(source, target, file, **changes):
    """A copy of a pipeline's JSON files with one of them changed."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    path = target / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


def test_the_only_encoder_and_the_fitting_one_of_two(sd, sdxl, tower, wide):
    first = fitting(sd, tower[0], tower[2])
    assert (first.name, first.architecture, first.projection_dim) == (
        "text_encoder",
        "CLIPTextModel",
        None,
    )
    assert "final LayerNorm" in first.states
    assert fitting(sdxl, tower[0], tower[2]).name == "text_encoder"
    second = fitting(sdxl, wide[0], wide[2])
    assert (second.name, second.tokenizer, second.projection_dim) == (
        "text_encoder_2",
        "tokenizer_2",
        28,
    )


# The published config.json of both pipelines, as far as they shape an encoder.
PUBLISHED = {
    "text_encoder": {
        "hidden_act": "quick_gelu", "hidden_size": 768, "intermediate_size": 3072,
        "num_attention_heads": 12, "num_hidden_layers": 12, "projection_dim": 768,
        "eos_token_id": 2, "max_position_embeddings": 77, "vocab_size": 49408,
    },
    "text_encoder_2": {
        "hidden_act": "gelu", "hidden_size": 1280, "intermediate_size": 5120,
        "num_attention_heads": 20, "num_hidden_layers": 32, "projection_dim": 1280,
        "eos_token_id": 2, "max_position_embeddings": 77, "vocab_size": 49408,
    },
}  # fmt: skip


@pytest.fixture
def published(tmp_path):
    """Directories of Stable Diffusion 1.5 and SDXL without weights."""
    for name, kind, width in (("sd", "", 768), ("sdxl", "XL", 2048)):
        index = {"_class_name": f"StableDiffusion{kind}Pipeline"}
        index |= {"text_encoder": ["transformers", "CLIPTextModel"]}
        index |= {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}
        files = {"model_index.json": index, "unet/config.json": {"cross_attention_dim": width}}
        files |= {f"{encoder}/config.json": config for encoder, config in PUBLISHED.items()}
        for file, content in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
    return tmp_path


def test_published_sizes(published, tower):
    """What ViT-L/14, ViT-bigG/14 and ViT-B/32 fit, tuned with the end token's id in the config."""
    large = TextConfig(width=768, heads=12, mlp_width=3072, eos_token_id=49407)
    huge = TextConfig(
        width=1280, heads=20, mlp_width=5120, layers=32, hidden_act="gelu", eos_token_id=49407
    )
    small = TextConfig()
    for text, dim, found in ((large, 768, "text_encoder"), (huge, 1280, "text_encoder_2")):
        config = dataclasses.replace(tower[0], text=text, projection_dim=dim)
        assert fitting(published / "sdxl", config, tower[2]).name == found
    config = dataclasses.replace(tower[0], text=large)
    assert fitting(published / "sd", config, tower[2]).name == "text_encoder"
    config = dataclasses.replace(tower[0], text=small)
    with pytest.raises(InputError, match=r"512 wide .* states of width 768 .* 768 \(text_encoder"):
        fitting(published / "sd", config, tower[2])


def test_a_width_that_the_unet_does_not_read_is_told_with_both_numbers(sd, sdxl, tower):
    config, info = changed(tower, width=512, heads=8)
    with pytest.raises(InputError, match=r"512 wide .* BASE, whose U-Net reads states of width 32"):
        fitting(sd, config, info)
    with pytest.raises(InputError, match=r"width 80 .* 32 \(text_encoder\) and 48 \(text_enc"):
        fitting(sdxl, config, info)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": 12}, "text_encoder has 2 layers, the tower 12 layers"),
        ({"heads": 4}, "has 2 heads, the tower 4 heads"),
        ({"vocab_size": 700}, "has 600 tokens, the tower 700 tokens"),
        ({"context_length": 20}, "has 24 positions, the tower 20 positions"),
        ({"hidden_act": "gelu"}, r"activation quick_gelu, the tower the activation gelu \(hidden_"),
        ({"layer_norm_eps": 1e-6}, "epsilon 1e-05 in LayerNorm, the tower epsilon 1e-06"),
    ],
)
def test_other_differences_are_told(sd, tower, fields, message):
    with pytest.raises(InputError, match=message):
        fitting(sd, *changed(tower, **fields))


def test_a_projection_that_does_not_fit(sdxl, wide):
    config = dataclasses.replace(wide[0], projection_dim=16)
    with pytest.raises(InputError, match="text_encoder_2 has a projection to 28, the tower one to"):
        fitting(sdxl, config, wide[2])


def test_the_rule_of_the_end_token_may_differ(sd, tower):
    assert fitting(sd, *changed(tower, eos_token_id=2)).name == "text_encoder"


def test_asked_for(sd, sdxl, tower):
    assert fitting(sdxl, tower[0], tower[2], "text_encoder").name == "text_encoder"
    with pytest.raises(InputError, match=r"from encoders of width 48 \(text_encoder_2\)"):
        fitting(sdxl, tower[0], tower[2], "text_encoder_2")
    with pytest.raises(InputError, match="--encoder=text_encoder_2: BASE has text_encoder"):
        fitting(sd, tower[0], tower[2], "text_encoder_2")


def test_another_family(sd, tower):
    with pytest.raises(InputError, match="is a SigLIP"):
        fitting(sd, SigLIPConfig(text=SigLIPTextConfig()), tower[2])


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "the pipeline is a FluxPipeline"),
        ("model_index.json", {"text_encoder": ["transformers", "T5"]}, "text_encoder is a T5, not"),
        ("model_index.json", {"text_encoder": "x"}, "text_encoder is a None"),
        ("unet/config.json", {"cross_attention_dim": None}, "the U-Net reads states of width None"),
        ("unet/config.json", {"cross_attention_dim": 768}, "width 768 .* text encoders give 32"),
        ("text_encoder/config.json", {"hidden_size": "x"}, "hidden_size"),
    ],
)
def test_pipelines_that_cannot_be_used(sd, tmp_path, file, changes, message):
    with pytest.raises(InputError, match=message):
        read_slots(edited(sd, tmp_path / "sd", file, **changes))


def test_no_pipeline(tmp_path):
    with pytest.raises(
        InputError, match=r"has no model_index\.json: --pipeline is the directory of"
    ):
        read_slots(tmp_path)


def test_exports_and_towers_alone_are_read(tower, tiny_vocabulary, tmp_path):
    config, params, _ = tower
    out = diffusers.save(tmp_path / "sd", config, params, tokenizer=tiny_vocabulary)
    for path, words in ((out, out / "tokenizer"), (out / "text_encoder", None)):
        read, weights, info = read_tower(str(path))
        assert read.text == config.text and info.label == str(path) and info.tokenizer == words
        embedding = weights["text"]["token_embedding"]
        np.testing.assert_array_equal(embedding, params["text"]["token_embedding"])


def test_other_checkpoints_go_to_the_one_reader(monkeypatch):
    asked = []
    monkeypatch.setattr(pipelines, "read_any", lambda path, **more: asked.append((path, more)))
    read_tower("runs/l14@500+ema")
    read_tower("negationclip.pt", "quick_gelu")
    alone = {"tower_class": "CLIPTextModel"}
    assert asked == [
        ("runs/l14@500", {"ema": True, "activation": None} | alone),
        ("negationclip.pt", {"ema": False, "activation": "quick_gelu"} | alone),
    ]


@pytest.mark.parametrize("which", ["sd", "sdxl"])
def test_the_built_encoder_is_the_one_that_was_saved(which, request):
    directory = request.getfixturevalue(which)
    name = "text_encoder" if which == "sd" else "text_encoder_2"
    config, params, info = read_tower(str(directory / name))
    slot = fitting(directory, config, info)
    assert slot.name == name
    built = build(transformers, slot, config, params, torch.float32)
    saved = getattr(transformers, slot.architecture).from_pretrained(directory / name)
    ids = torch.tensor([[598, *range(40, 60), 599, 599, 599]])
    with torch.no_grad():
        ours, theirs = (m(ids, output_hidden_states=True) for m in (built, saved))
    assert built.config.hidden_act == saved.config.hidden_act
    for a, b in zip(ours.to_tuple(), theirs.to_tuple(), strict=True):
        for x, y in zip(*((t if isinstance(t, tuple) else (t,)) for t in (a, b)), strict=True):
            assert torch.equal(x, y)
