"""CLIPSeg's masks are transformers', with its own text tower and with one in its place."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clipseg import write_clipseg
from transformers import CLIPModel, CLIPSegForImageSegmentation

from evals import models
from evals.segmentation.clipseg import CLIPSeg
from negclip_jax.common.errors import InputError
from negclip_jax.embeddings.store import EmbeddingStore
from negclip_jax.interop import clipseg

TEXTS = ["a cat", "a cat without a hat", "no dog at all"]


@pytest.fixture(scope="module")
def ours(clipseg_directory):
    return CLIPSeg(str(clipseg_directory), size=64)


@pytest.fixture(scope="module")
def tokenizer(ours):
    return ours.tokenizer(None)


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))


def reference(directory, pixels: np.ndarray, ids: np.ndarray, text_of=None) -> np.ndarray:
    """Probabilities by transformers' own forward pass, after the exchange that users do by hand."""
    model = CLIPSegForImageSegmentation.from_pretrained(directory).eval()
    if text_of is not None:
        state = CLIPModel.from_pretrained(text_of).state_dict()
        text = {f"clip.{n}": t for n, t in state.items() if n.startswith("text_")}
        assert not model.load_state_dict(text, strict=False).unexpected_keys
    with torch.no_grad():
        found = model(
            input_ids=torch.from_numpy(ids.astype(np.int64)),
            pixel_values=torch.from_numpy(np.stack([pixels] * len(ids))),
        )
    return torch.sigmoid(found.logits).numpy()


def test_its_own_masks_are_those_of_transformers(ours, clipseg_directory, tokenizer, photo):
    pixels = ours.pixels(photo)
    found = ours.masks(pixels, ours.embed(TEXTS, tokenizer))
    wanted = reference(clipseg_directory, pixels, tokenizer(TEXTS))
    assert found.shape == (3, 64, 64) and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert 0.1 < (found > 0.5).mean() < 0.9 and np.abs(found[0] - found[1]).max() > 0.01


def test_the_same_tower_in_its_place_gives_identical_masks(ours, same_tower, tokenizer, photo):
    model = models.load(f"same={same_tower}")
    assert ours.check(model) == ""
    own, same = ours.embed(TEXTS, tokenizer), ours.embed(TEXTS, tokenizer, model)
    np.testing.assert_array_equal(own, same)
    pixels = ours.pixels(photo)
    np.testing.assert_array_equal(ours.masks(pixels, own), ours.masks(pixels, same))


def test_a_tuned_tower_is_what_users_get_by_hand(
    ours, clipseg_directory, tuned_tower, tokenizer, photo
):
    model = models.load(f"tuned={tuned_tower}")
    assert ours.check(model) == ""
    pixels = ours.pixels(photo)
    own = ours.masks(pixels, ours.embed(TEXTS, tokenizer))
    found = ours.masks(pixels, ours.embed(TEXTS, tokenizer, model))
    wanted = reference(clipseg_directory, pixels, tokenizer(TEXTS), tuned_tower)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(found - own).max() > 0.01
    again = ours.masks(pixels, ours.embed(TEXTS, tokenizer))  # its own tower comes back
    np.testing.assert_array_equal(again, own)


def test_a_phrase_is_encoded_once(ours, tuned_tower, tokenizer, tmp_path, monkeypatch):
    model = models.load(f"tuned={tuned_tower}")
    path = tmp_path / "phrases.bin"
    first = ours.embed(TEXTS[:2], tokenizer, model, store=EmbeddingStore(path, 40))
    exchanged = []
    inner = clipseg.text_tensors
    watched = lambda config, params: exchanged.append(params) or inner(config, params)  # noqa: E731
    monkeypatch.setattr(clipseg, "text_tensors", watched)
    again = ours.embed([*TEXTS[:2], TEXTS[0]], tokenizer, model, store=EmbeddingStore(path, 40))
    np.testing.assert_array_equal(again, first[[0, 1, 0]])
    assert not exchanged
    ours.embed(TEXTS, tokenizer, model, store=EmbeddingStore(path, 40))
    assert exchanged == [model.params] and len(EmbeddingStore(path, 40)) == 3


def test_pixels_are_squashed_as_the_published_evaluation_does(ours, photo):
    image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float()
    wanted = torch.nn.functional.interpolate(image, (64, 64), mode="bilinear", align_corners=True)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    wanted = (wanted[0] / 255 - mean) / std
    np.testing.assert_allclose(ours.pixels(photo), wanted.numpy(), atol=1e-6)


def test_a_decoder_that_draws_smaller_is_resized(tmp_path, tiny_vocabulary, photo):
    small = write_clipseg(tmp_path / "small", tiny_vocabulary, reduce_dim=8,
                          vision_config=dict(hidden_size=48, intermediate_size=80,
                                             num_hidden_layers=4, num_attention_heads=3,
                                             image_size=32, patch_size=8))  # fmt: skip
    model = CLIPSeg(str(small), size=64)
    found = model.masks(model.pixels(photo), model.embed(["a"], model.tokenizer(None)))
    assert found.shape == (1, 64, 64)  # its logits are 32 x 32


def test_a_tower_of_another_shape_is_refused_with_both_numbers(ours, tiny_model):
    text = dataclasses.replace(tiny_model.config.text, width=64, mlp_width=128)
    config = dataclasses.replace(tiny_model.config, text=text, projection_dim=48)
    other = dataclasses.replace(tiny_model, name="large", config=config)
    with pytest.raises(InputError) as error:
        ours.check(other)
    assert "large does not fit CLIPSeg: it has 64 wide where CLIPSeg's has 32" in str(error.value)
    assert "48 numbers after the projection where CLIPSeg's has 40" in str(error.value)


def test_a_tower_of_another_training_is_told(ours, tiny_model):
    assert "was not fine-tuned from CLIPSeg's own" in ours.check(tiny_model)


def test_bad_directories_have_messages(clipseg_directory, same_tower, tmp_path):
    with pytest.raises(InputError, match="model_type is 'clip', not 'clipseg'"):
        CLIPSeg(str(same_tower))
    with pytest.raises(InputError, match=r"--size=100 is no multiple of 16.*: 96 is the nearest"):
        CLIPSeg(str(clipseg_directory), size=100)
    with pytest.raises(InputError, match="there is no checkpoint directory"):
        CLIPSeg(str(tmp_path / "nothing"))

    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(clipseg_directory, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors.pop("decoder.film_mul.weight")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 tensors of CLIPSeg \(decoder\.film_mul\.weight"):
        CLIPSeg(str(broken))
    config = json.loads((broken / "config.json").read_text())
    config["reduce_dim"] = 32
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="cannot be read as CLIPSeg"):
        CLIPSeg(str(broken))


def test_a_directory_without_tokenizer_takes_the_models(clipseg_directory, tiny_model, tmp_path):
    bare = shutil.copytree(clipseg_directory, tmp_path / "bare")
    for name in ("vocab.json", "merges.txt"):
        (bare / name).unlink()
    model = CLIPSeg(str(bare), size=64)
    assert model.tokenizer(tiny_model.tokenizer) is tiny_model.tokenizer
