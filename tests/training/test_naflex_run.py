"""A SigLIP 2 NaFlex: its text tower is trained on features of its own vision tower in transformers.

Flexible resolution: photos of any shape as patches, which this package's vision towers do not take.
"""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import transformers
from interop import tiny
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_runs import use_one_device
from tokenizers.processors import TemplateProcessing

from negclip_jax.common.errors import InputError
from negclip_jax.data import feature_files
from negclip_jax.interop import export
from negclip_jax.interop.readers import read_any
from negclip_jax.pretrained import CLIP
from negclip_jax.training.loop import train

TEXTS = ["a Dog and NO cat", "there is not a dog", "0123456789 abcdefghijk"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """`(model, its folder)`: 16 positions for captions, up to 9 patches, and Gemma's tokenizer."""
    symbols = [chr(i) for i in range(97, 123)] + [str(i) for i in range(10)] + ["\u2581"]
    vocab = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *symbols]
    vocab += [f"<0x{byte:02X}>" for byte in range(256)]
    text = tiny.SIGLIP_TEXT | {"max_position_embeddings": 16, "vocab_size": len(vocab)}
    vision = {key: value for key, value in tiny.VISION.items() if key != "image_size"}
    config = transformers.Siglip2Config(text_config=text, vision_config=vision | {"num_patches": 9})
    torch.manual_seed(0)
    model = transformers.Siglip2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tiny.saved(tmp_path_factory.mktemp("naflex") / "tiny", model)
    tokenizer = transformers.Siglip2Tokenizer(
        vocab={token: i for i, token in enumerate(vocab)}, merges=[], padding_side="right"
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    tokenizer.save_pretrained(folder)
    transformers.Siglip2ImageProcessorPil(patch_size=4, max_num_patches=9).save_pretrained(folder)
    return model, folder


def their_images(model, folder, photos):
    """Features by the library's own tower and preprocessing, of photos of different shapes."""
    process = transformers.Siglip2ImageProcessorPil.from_pretrained(folder)
    with torch.no_grad():
        found = model.get_image_features(**process(photos, return_tensors="pt"))
    return found.pooler_output.numpy()


def their_texts(model, folder):
    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokens(TEXTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return model.get_text_features(ids.input_ids).pooler_output.numpy()


@pytest.fixture(scope="module")
def run(base, tiny_pairs, make_config, tmp_path_factory):
    model, folder = base
    photos = sorted((tiny_pairs / "images").glob("*.png"))
    shapes = [(24, 8), (8, 16), (12, 12)]
    images = [Image.open(p).convert("RGB").resize(shapes[i % 3]) for i, p in enumerate(photos)]
    place = tmp_path_factory.mktemp("run")
    rows = their_images(model, folder, images)
    feature_files.write(place / "f.parquet", [p.name for p in photos], rows, str(folder))
    settings = {"model.checkpoint": str(folder), "data.images": None, "optim.lr": 1e-3}
    settings |= {"data.features": str(place / "f.parquet"), "eval.every": "4 steps"}
    with pytest.MonkeyPatch.context() as patch:
        use_one_device(patch)
        for total in ("2 steps", "8 steps"):  # resumed
            train(make_config(settings | {"train.total": total}), str(place / "naflex"))
    return place / "naflex"


def test_texts_are_those_of_transformers(base):
    model, folder = base
    ours = CLIP.from_pretrained(folder)
    theirs = their_texts(model, folder)
    assert tiny.difference(np.asarray(ours.encode_text(ours.tokenize(TEXTS))), theirs) < 1e-5
    assert "vision of another library" in repr(ours)
    with pytest.raises(InputError, match="give image features that its own library computed"):
        ours.encode_image(np.zeros((1, 16, 16, 3), np.float32))


@pytest.mark.slow
def test_a_run_trains_the_sigmoid_loss_and_keeps_the_rest(run, base):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["val/loss"] for row in rows if "val/loss" in row]
    assert losses[-1] < losses[0]
    assert "train.objective=sigmoid" in (run / "train.log").read_text()
    _, params, _ = read_any(run)
    before = read_any(base[1])[1]
    assert params["logit_bias"] != before["logit_bias"]
    assert params["logit_scale"] != before["logit_scale"]


@pytest.mark.slow
def test_adapters_go_to_transformers_merged(run, base, make_config, tmp_path, one_device):
    """Each kernel of attention and MLP moves, and the token embedding does not."""
    settings = {"model.checkpoint": str(base[1]), "data.images": None, "optim.lr": 1e-2}
    settings |= {"data.features": str(run.parent / "f.parquet"), "optim.lora_rank": 2}
    train(make_config(settings | {"train.total": "2 steps"}), str(tmp_path / "lora"))
    assert export.main([f"--model={tmp_path / 'lora'}@last", f"--out={tmp_path / 'out'}"]) == 0
    before, after = (load_file(d / "model.safetensors") for d in (base[1], tmp_path / "out"))
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    kernels = {n for n in before if n.startswith("text_model.enc") and n.endswith("weight")}
    assert moved == {name for name in kernels if "norm" not in name}


@pytest.mark.slow
def test_the_export_loads_in_transformers_with_its_own_vision_tower(run, base, tmp_path, capsys):
    model, folder = base
    shutil.copytree(run, tmp_path / "moved")  # a run is whole without the checkpoint
    out = tmp_path / "out"
    assert export.main([f"--model={tmp_path / 'moved'}@last", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert "AutoProcessor, Siglip2Model" in printed
    assert re.search(
        r"the export as transformers \S+ reads it: features differ by \d\.\de-0[67]", printed
    )
    again, info = transformers.Siglip2Model.from_pretrained(out, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    photos = [Image.new("RGB", shape, (90, 200, 30)) for shape in ((24, 8), (8, 16), (12, 12))]
    ours, theirs = their_images(again.eval(), out, photos), their_images(model, folder, photos)
    np.testing.assert_array_equal(ours, theirs)
    trained = CLIP.from_pretrained(out).encode_text(CLIP.from_pretrained(out).tokenize(TEXTS))
    assert tiny.difference(np.asarray(trained), their_texts(again, out)) < 1e-5
    assert tiny.difference(their_texts(again, out), their_texts(model, folder)) > 1e-3
    for layout in ("openai", "open_clip", "diffusers"):
        flags = [f"--model={out}", f"--out={tmp_path / 'other'}", f"--layout={layout}"]
        assert export.main(flags) == 1
        assert "error: " in (error := capsys.readouterr().err) and "vision tower" in error
        assert "\n" not in error.strip()


def test_the_vision_half_keeps_its_types(base, tmp_path, capsys):
    """Half of a file in bfloat16, and an integer: neither is converted, nor is the text half."""
    mixed = shutil.copytree(base[1], tmp_path / "mixed")
    tensors = load_file(mixed / "model.safetensors")
    tensors = {n: t.bfloat16() if n.startswith("vision_model.e") else t for n, t in tensors.items()}
    tensors["vision_model.embeddings.position_ids"] = torch.arange(9)[None]
    save_file(tensors, mixed / "model.safetensors", metadata={"format": "pt"})
    assert export.main([f"--model={mixed}", f"--out={tmp_path / 'out'}"]) == 0
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert set(written) == set(tensors)
    for name, tensor in tensors.items():
        assert written[name].dtype == tensor.dtype and torch.equal(written[name], tensor), name
    half = {n: t for n, t in tensors.items() if not n.startswith("vision")}
    save_file(half, mixed / "model.safetensors", metadata={"format": "pt"})
    assert export.main([f"--model={mixed}", f"--out={tmp_path / 'half'}"]) == 1
    assert "holds the text half of a model alone" in capsys.readouterr().err
