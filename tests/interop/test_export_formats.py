"""The lines that the export command prints are run as printed, each in its own library."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from interop import libraries, tiny

from negclip_jax.interop import export
from negclip_jax.interop.config import preprocessor_dict
from negclip_jax.models import clip


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_vocabulary):
    """`(model of transformers, directory)`: OpenAI's shapes, with a tokenizer."""
    # The vocabulary's 600 tokens, the last of which ends a caption.
    text = tiny.OPENAI_TEXT | {"vocab_size": 600, "bos_token_id": 598, "eos_token_id": 599}
    model = tiny.torch_clip(text | {"max_position_embeddings": 24}, tiny.OPENAI_VISION, std=0.05)
    directory = tiny.saved(tmp_path_factory.mktemp("base") / "base", model)
    for name in ("vocab.json", "merges.txt"):
        (directory / name).write_bytes((tiny_vocabulary / name).read_bytes())
    settings = preprocessor_dict(tiny.load(directory)[0])
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    return model, directory


def printed(capsys, *flags):
    """Runs the command and returns the code that it prints."""
    assert export.main(list(flags)) == 0
    out = capsys.readouterr().out
    return out.split("load it with\n\n")[1].strip()


def ran(code):
    names = {}
    exec(code, names)
    return names


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((3, 16, 16, 3)).astype(np.float32)
    ids = rng.integers(3, 598, (4, 24))
    ids[[0, 1, 2, 3], [5, 9, 12, 23]] = 599
    return pixels, ids


def logits(layout, names, pixels, ids):
    images, texts = torch.tensor(pixels).permute(0, 3, 1, 2), torch.tensor(ids)
    model = names["model"].eval()
    with torch.no_grad():
        if layout == "huggingface":
            return tiny.torch_logits(model, pixels, ids)
        if layout == "openai":
            return model(images, texts)[0].numpy()
        image, text, scale = model(images, texts)[:3]
        return (scale * image @ text.T).numpy()


@pytest.mark.parametrize(
    ("layout", "flags"),
    [
        ("huggingface", []),
        ("openai", []),
        ("open_clip", []),
        ("open_clip", ["--architecture=CustomTextCLIP"]),
    ],
)
def test_printed_lines_give_the_same_logits(layout, flags, base, batch, tmp_path, capsys):
    model, directory = base
    if layout != "huggingface":
        libraries.load({"openai": "clip", "open_clip": "open_clip"}[layout])
    flags = [f"--model={directory}", f"--layout={layout}", *flags]
    code = printed(capsys, *flags, f"--out={tmp_path / 'out'}")
    assert len(code.splitlines()) == 3
    names = ran(code)
    expected = tiny.torch_logits(model, *batch)
    assert tiny.difference(logits(layout, names, *batch), expected) < 1e-4
    if layout == "huggingface":
        assert names["processor"](text="no", return_tensors="pt")["input_ids"][0, -1] == 599
    if layout == "open_clip":
        assert names["tokenizer"](["no"]).shape == (1, 24)
        custom = flags[-1] == "--architecture=CustomTextCLIP"
        assert type(names["model"]).__name__ == ("CustomTextCLIP" if custom else "CLIP")


@pytest.mark.parametrize(
    "architecture",
    ["CLIPTextModel", "CLIPTextModelWithProjection", "CLIPVisionModelWithProjection"],
)
def test_printed_lines_of_one_tower(architecture, base, batch, tmp_path, capsys):
    model, directory = base
    flags = [f"--model={directory}", f"--out={tmp_path / 'out'}"]
    code = printed(capsys, *flags, f"--architecture={architecture}")
    tower = ran(code)["model"]
    images, texts = tiny.torch_features(model, *batch)
    pixels, ids = torch.tensor(batch[0]).permute(0, 3, 1, 2), torch.tensor(batch[1])
    with torch.no_grad():
        if architecture == "CLIPVisionModelWithProjection":
            np.testing.assert_array_equal(tower(pixels).image_embeds, images)
        elif architecture == "CLIPTextModelWithProjection":
            np.testing.assert_array_equal(tower(ids).text_embeds, texts)
        else:
            states = model.text_model(ids).last_hidden_state
            assert torch.equal(tower(ids).last_hidden_state, states)


def tiny_pipeline(directory, width):
    """A random Stable Diffusion whose U-Net attends to states of a width, saved as usual."""
    diffusers = pytest.importorskip("diffusers")
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8)
    encoder = CLIPTextModel(CLIPTextConfig(**tiny.TEXT))
    tokenizer = CLIPTokenizer.from_pretrained(directory, model_max_length=24)
    diffusers.StableDiffusionPipeline(
        vae,
        encoder,
        tokenizer,
        unet,
        diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")


def test_printed_lines_put_the_encoder_into_stable_diffusion(base, tmp_path, capsys, monkeypatch):
    """The name that the lines load stands for a local directory here."""
    model, directory = base
    monkeypatch.chdir(tmp_path)
    tiny_pipeline(directory, width=64)
    flags = [f"--model={directory}", "--layout=diffusers", f"--out={tmp_path / 'out'}"]
    code = printed(capsys, *flags)
    pipeline = ran(code)["pipeline"]
    pipeline.set_progress_bar_config(disable=True)
    prompt = {"prompt": "no dog", "device": "cpu", "num_images_per_prompt": 1}
    with torch.no_grad():
        states, _ = pipeline.encode_prompt(**prompt, do_classifier_free_guidance=False)
        ids = pipeline.tokenizer("no dog", padding="max_length", return_tensors="pt")["input_ids"]
        expected = model.text_model(ids).last_hidden_state
    assert torch.equal(states, expected)
    image = pipeline("no dog", num_inference_steps=1, output_type="np").images
    assert np.isfinite(image).all()


def test_one_tower_keeps_its_own_outputs():
    config = clip.CLIPConfig()
    assert export.outputs("", config) == ("encode_image", "encode_text")
    assert export.outputs("CLIPTextModel", config) == ("text",)
    assert export.outputs("CLIPVisionModelWithProjection", config) == ("encode_image",)
    blind = dataclasses.replace(config, vision=None)
    assert export.outputs("", blind) == ("encode_text",)


def test_the_quick_gelu_trap(base, batch, tmp_path, capsys):
    """Exports of a gelu model say so to every library that has both."""
    model, directory = base
    libraries.load("open_clip")
    gelu = tmp_path / "gelu"
    gelu.mkdir()
    for path in directory.iterdir():
        (gelu / path.name).write_bytes(path.read_bytes())
    config = json.loads((gelu / "config.json").read_text())
    for tower in ("text_config", "vision_config"):
        config[tower]["hidden_act"] = "gelu"
    (gelu / "config.json").write_text(json.dumps(config))
    reference = type(model).from_pretrained(gelu).eval()
    expected = tiny.torch_logits(reference, *batch)
    assert tiny.difference(expected, tiny.torch_logits(model, *batch)) > 1e-3
    for layout in ("huggingface", "open_clip"):
        out = tmp_path / layout
        code = printed(capsys, f"--model={gelu}", f"--layout={layout}", f"--out={out}")
        assert tiny.difference(logits(layout, ran(code), *batch), expected) < 1e-4
    assert export.main([f"--model={gelu}", "--layout=openai", f"--out={tmp_path / 'x'}"]) == 1
    assert "activation is gelu where its code has quick_gelu" in capsys.readouterr().err
