"""Models of open_clip whose vision tower is not read: the text half is, the rest stays as it is."""

import json

import numpy as np
import pytest
import torch
from flax import nnx
from interop import libraries, tiny
from safetensors.torch import load_file, save_file

from negclip_jax import CLIP
from negclip_jax.common.errors import InputError
from negclip_jax.data.packing import Packing, Ragged
from negclip_jax.interop import export, open_clip, readers
from negclip_jax.models import clip

# A ResNet, open_clip's own; the text tower reads in both directions, as MobileCLIP's.
MODEL = {
    "embed_dim": 24,
    "custom_text": True,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 600, "width": 32, "heads": 4, "layers": 2,
                 "no_causal_mask": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_vocabulary):
    """`(open_clip's model, its folder)`: weights in two types, and counters."""
    torch.manual_seed(0)
    options = {key: value for key, value in MODEL.items() if key != "custom_text"}
    model = libraries.load("open_clip").CustomTextCLIP(**options).eval()
    with torch.no_grad():
        for parameter in model.text.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path_factory.mktemp("resnet")
    described = {"model_cfg": MODEL, "preprocess_cfg": {"interpolation": "bilinear"}}
    (folder / open_clip.CONFIG).write_text(json.dumps(described))
    state = {k: v.contiguous().clone() for k, v in model.state_dict().items()}
    state["visual.conv1.weight"] = state["visual.conv1.weight"].bfloat16()
    model.load_state_dict(state)
    save_file(state, folder / open_clip.WEIGHTS[0])
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((tiny_vocabulary / name).read_bytes())
    return model, folder


def captions():
    """As open_clip pads them: zeros after the end token, which is the largest id."""
    ids = np.random.default_rng(0).integers(3, 598, (4, 16))
    for row, end in zip(ids, (2, 7, 12, 15), strict=True):
        row[end], row[end + 1 :] = 599, 0
    return ids


def their_texts(model, ids):
    with torch.no_grad():
        return model.encode_text(torch.tensor(ids)).numpy()


def test_the_text_half_is_read(saved):
    model, folder = saved
    config, params, info = readers.read_any(folder)
    assert config.vision is None and set(params) == {"text", "text_projection", "logit_scale"}
    ids = captions()
    ours = tiny.our_texts(config, params, ids)
    assert tiny.difference(ours, their_texts(model, ids)) < 1e-5
    assert info.activation == "gelu" and info.load_tokenizer()("a cat").shape == (1, 16)
    assert info.other_vision.tensors["visual.conv1.weight"].dtype == "bfloat16"


def test_images_need_features(saved):
    loaded = CLIP.from_pretrained(saved[1])
    assert "vision of another library; text 2 x 32" in repr(loaded)
    with pytest.raises(InputError, match="give image features that its own library computed"):
        loaded.encode_image(np.zeros((1, 32, 32, 3), np.float32))
    texts = loaded.embed_texts(["a cat", "a dog and a cat"])  # padded, as the model reads it
    alone = loaded.embed_texts(["a cat"])
    np.testing.assert_allclose(texts[:1], alone, atol=1e-6)


def test_export_leaves_the_vision_half_alone(saved, tmp_path, capsys):
    model, folder = saved
    flags = [f"--model={folder}", f"--out={tmp_path / 'out'}"]
    assert export.main([*flags, "--layout=open_clip", "--dtype=float16"]) == 0
    assert "the export as open_clip" in capsys.readouterr().out
    before, after = (load_file(d / open_clip.WEIGHTS[0]) for d in (folder, tmp_path / "out"))
    assert set(before) == set(after)
    for name, tensor in before.items():
        if name.startswith("visual."):
            assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name
        elif name.startswith("text."):
            assert after[name].dtype == torch.float16
    again = libraries.load("open_clip").create_model(f"local-dir:{tmp_path / 'out'}").eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.encode_image(pixels), model.encode_image(pixels))
    for layout in ("huggingface", "openai", "diffusers"):
        assert export.main([*flags, f"--layout={layout}", "--overwrite"]) == 1
        assert "--layout=open_clip" in capsys.readouterr().err


def test_a_run_keeps_what_an_export_needs(saved, tmp_path):
    _, folder = saved
    readers.copy_base(folder, tmp_path / "base")
    config, info = readers.read_base(tmp_path / "base", "a run")
    assert config == readers.read_any(folder)[0] and info.tokenizer == tmp_path / "base"
    kept = load_file(tmp_path / "base" / info.other_vision.file)
    expected = {n: t for n, t in load_file(folder / open_clip.WEIGHTS[0]).items() if "visual" in n}
    assert set(kept) == set(expected) == set(info.other_vision.tensors)
    assert all(torch.equal(kept[n], t) for n, t in expected.items())


def test_the_text_half_alone_needs_the_rest(saved, tmp_path):
    folder = saved[1]
    half = {n: t for n, t in load_file(folder / open_clip.WEIGHTS[0]).items() if "visual" not in n}
    half["text.ln_final.bias"] = half["text.ln_final.bias"] + 1
    save_file(half, tmp_path / "tuned.safetensors")
    config, params, info = readers.read_any(tmp_path / "tuned.safetensors", base=folder)
    assert len(info.other_vision.tensors) > 10 and config.vision is None
    assert float(params["text"]["ln_final"]["bias"].mean()) > 0.5
    (tmp_path / open_clip.CONFIG).write_bytes((folder / open_clip.CONFIG).read_bytes())
    with pytest.raises(InputError, match="holds the text half of a model alone: give the whole"):
        readers.read_any(tmp_path / "tuned.safetensors")


def test_a_configuration_of_open_clips_own_by_name(saved, tmp_path):
    """`model_configs/NAME.json` in the place of a folder's; without any, what to do is said."""
    weights = tmp_path / open_clip.WEIGHTS[0]
    weights.write_bytes((saved[1] / open_clip.WEIGHTS[0]).read_bytes())
    with pytest.raises(
        InputError, match=r"is a ResNet, .*put its open_clip_config\.json beside it"
    ):
        readers.read_any(weights)
    (tmp_path / open_clip.CONFIG).write_text(json.dumps(MODEL))
    config, params, info = readers.read_any(tmp_path)
    out = open_clip.save(tmp_path / "out", config, params, other_vision=info.other_vision)
    libraries.load("open_clip").create_model(f"local-dir:{out}")


@pytest.mark.parametrize("pooling", clip.POOLINGS)
@pytest.mark.parametrize("causal", [pytest.param(True, marks=pytest.mark.slow), False])
def test_packed_captions_have_the_features_of_padded_ones(pooling, causal):
    """Where the padding is read it is packed as well, and a caption sees no other."""
    sizes = {"width": 32, "layers": 2, "heads": 4, "mlp_width": 64, "vocab_size": 600}
    text = clip.TextConfig(
        **sizes, context_length=16, eos_token_id=599, pooling=pooling, causal=causal
    )
    config = clip.CLIPConfig(text=text, vision=None, projection_dim=8)
    params = clip.split(config.build(dtype=np.float32, remat=False, scan=True, rngs=nnx.Rngs(0)))[1]
    ids = captions()
    ends = (ids == 599).argmax(1)
    lengths = np.full(4, 16) if text.reads_padding else ends + 1
    flat = np.concatenate([row[:n] for row, n in zip(ids, lengths, strict=True)])
    ragged = Ragged(flat.astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]))
    packing = Packing(4, 32, 3)
    packed = tiny.our_texts(config, params, packing.pack(ragged, np.arange(4)))
    padded = tiny.our_texts(config, params, ids)
    np.testing.assert_allclose(packed, padded, atol=2e-6)
