"""One function reads every layout and says what it took the model to be."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from interop import tiny
from safetensors.torch import load_file, save_file

from negclip_jax.checkpoints import restore
from negclip_jax.common.errors import InputError
from negclip_jax.interop import huggingface, open_clip, openai, readers
from negclip_jax.interop.files import StoredTensor
from negclip_jax.interop.readers import read_any
from negclip_jax.interop.writing import copy_non_weights
from negclip_jax.models import clip, siglip


@pytest.fixture(scope="module")
def directory(tmp_path_factory, tiny_vocabulary):
    """A Hugging Face directory whose towers have different activations."""
    path = tiny.saved(
        tmp_path_factory.mktemp("hf") / "tiny", tiny.torch_clip({"hidden_act": "gelu"})
    )
    for name in ("vocab.json", "merges.txt"):
        (path / name).write_bytes((tiny_vocabulary / name).read_bytes())
    return path


@pytest.fixture
def workdir(directory, tmp_path, monkeypatch):
    """A training run without the training: parameters whose scale is the step."""
    path = tmp_path / "run"
    copy_non_weights(directory, path / "base")
    (path / "checkpoints").mkdir()
    _, params = tiny.load(directory)

    def restore_params(workdir, step="best", *, ema=False):
        number = {"best": 20, "last": 30}.get(step) or int(step)
        return params | {"logit_scale": np.float32(number + 0.5 * ema)}, number

    monkeypatch.setattr(restore, "restore_params", restore_params)
    return path


def test_hugging_face_directory(directory):
    config, params, info = read_any(directory)
    assert (config, info.path, info.layout) == (tiny.load(directory)[0], directory, "huggingface")
    tiny.assert_equal_params(params, tiny.load(directory)[1])
    assert info.activation == "gelu in the text tower, quick_gelu in the vision tower"
    assert info.activation_source == f"hidden_act in {directory / 'config.json'}"
    assert info.pooling == "the first token with id 97"
    assert info.tokenizer == directory and info.base == directory
    assert info.preprocessor.size == 16 and info.preprocessor_source == "CLIP's own"


@pytest.mark.parametrize(
    ("suffix", "ema", "scale"),
    [("", False, 20), ("@best", False, 20), ("@last", False, 30), ("@7", True, 7.5)],
)
def test_workdir(suffix, ema, scale, workdir):
    _, params, info = read_any(f"{workdir}{suffix}", ema=ema)
    assert float(params["logit_scale"]) == scale
    assert info.layout == "workdir" and info.step == int(scale) and info.path == workdir
    assert info.label.startswith(f"step {int(scale)} of {workdir}")
    assert info.tokenizer == workdir / "base"


def test_files_of_another_model_beside_one_of_open_clip(layouts, tmp_path):
    """open_clip does not read config.json, so that it may say anything."""
    for path in (layouts / "open_clip").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert read_any(tmp_path)[2].base == tmp_path
    tiny.edit_config(tmp_path, projection_dim=7)
    config, params, info = read_any(tmp_path)
    assert config == read_any(layouts / "open_clip")[0] and info.base is None
    huggingface.save(tmp_path / "out", config, params, base=info.base)
    tiny.edit_config(tmp_path, text_config={"hidden_act": "relu"})
    assert read_any(tmp_path)[2].base is None


def test_at_sign_in_a_directory_name(directory, tmp_path):
    link = tmp_path / "me@home"
    link.symlink_to(directory)
    assert read_any(link)[2].label == str(link)


def test_pooling_of_old_configurations(tmp_path):
    tiny.saved(tmp_path, tiny.torch_clip({"eos_token_id": 2}))
    assert "largest token id" in read_any(tmp_path)[2].pooling
    assert read_any(tmp_path)[2].tokenizer is None


@pytest.mark.parametrize(
    ("path", "ema", "reason"),
    [
        ("{hf}@500", False, r"is not the --workdir of one"),
        ("{hf}", True, r"is not the --workdir of one"),
        ("{tmp}/gone", False, "there is no checkpoint directory"),
        ("{tmp}", False, r"has no config\.json"),
    ],
)
def test_errors_are_sentences(path, ema, reason, directory, tmp_path):
    with pytest.raises(InputError, match=reason):
        read_any(path.format(hf=directory, tmp=tmp_path), ema=ema)


def test_a_directory_without_base_is_no_run(tmp_path):
    with pytest.raises(InputError, match="has no base/"):
        readers.read_workdir(tmp_path)


@pytest.fixture(scope="module")
def layouts(tmp_path_factory, tiny_vocabulary):
    """One model in OpenAI's and in open_clip's layout, in one folder each."""
    folder = tmp_path_factory.mktemp("layouts")
    model = tiny.torch_clip(tiny.OPENAI_TEXT, tiny.OPENAI_VISION)
    config, params = tiny.load(tiny.saved(folder / "hf", model))
    openai.save(folder / "openai", config, params, tokenizer=tiny_vocabulary)
    open_clip.save(folder / "open_clip", config, params, tokenizer=tiny_vocabulary)
    return folder


def test_directories_of_other_layouts(layouts):
    for name in ("openai", "open_clip"):
        config, params, info = read_any(layouts / name)
        assert config == read_any(layouts / "hf")[0]
        tiny.assert_equal_params(params, read_any(layouts / "hf")[1])
        assert (info.layout, info.tokenizer, info.base) == (name, layouts / name, layouts / name)


def test_a_directory_with_several_layouts_is_read_as_transformers_reads_it(layouts, tmp_path):
    """LAION's repositories hold both."""
    for source in ("open_clip", "hf"):
        for path in (layouts / source).iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert read_any(tmp_path)[2].layout == "huggingface"
    info = read_any(tmp_path / "open_clip_model.safetensors")[2]
    assert info.layout == "open_clip" and info.activation_source.endswith("open_clip_config.json")


def test_repositories_of_the_hub(layouts, tmp_path, monkeypatch):
    """open_clip's, with a classifier of timm in the files that transformers would take."""
    for path in (layouts / "open_clip").iterdir():
        if path.name != "config.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text('{"architecture": "vit_base_patch32_clip_224"}')
    (tmp_path / "model.safetensors").write_bytes(b"of timm")
    monkeypatch.setattr(readers, "resolve", lambda name: tmp_path)
    _, params, info = read_any("timm/vit_base_patch32_clip_224.openai")
    assert info.layout == "open_clip" and info.base is None
    assert info.label == "timm/vit_base_patch32_clip_224.openai"
    tiny.assert_equal_params(params, read_any(layouts / "hf")[1])
    monkeypatch.setattr(readers, "resolve", lambda name: layouts / "hf")
    assert read_any("openai/clip")[2].layout == "huggingface"


def test_files_that_need_a_word_of_the_person(layouts, tmp_path):
    with pytest.raises(InputError, match=r"is read with its config\.json: give"):
        read_any(layouts / "hf" / "model.safetensors")
    weights = layouts / "openai" / "model.pt"
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes(weights.read_bytes())
    with pytest.raises(InputError, match=r"several checkpoints \(a\.pt, b\.pt\): give one"):
        read_any(tmp_path)
    assert read_any(tmp_path / "a.pt")[2].layout == "openai"
    (tmp_path / "b.pt").unlink()
    assert read_any(tmp_path)[2].path == tmp_path / "a.pt"
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"notes\.txt is no weight file"):
        read_any(tmp_path / "notes.txt")


def test_safetensors_alone_do_not_say_their_activation(layouts, tmp_path):
    """OpenAI never released safetensors, so nothing can be assumed of them."""
    weights = layouts / "open_clip" / "open_clip_model.safetensors"
    (tmp_path / "x.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(InputError, match="does not say its activation"):
        read_any(tmp_path / "x.safetensors")
    config, _, info = read_any(tmp_path / "x.safetensors", activation="quick_gelu")
    assert config.text.hidden_act == "quick_gelu" and info.activation_source == "given"


def test_what_is_said_of_a_model(directory):
    info = read_any(directory)[2]
    assert info.activation == "gelu in the text tower, quick_gelu in the vision tower"
    other = dataclasses.replace(info, config=clip.CLIPConfig())
    assert (other.activation, other.pooling) == ("quick_gelu", "the first token with id 49407")
    largest = dataclasses.replace(
        info, config=clip.CLIPConfig(text=clip.TextConfig(pooling="argmax"))
    )
    assert largest.pooling == "the first of the largest token id"
    last = dataclasses.replace(info, config=siglip.SigLIPConfig())
    assert last.pooling == "the last position, padding included"


@pytest.fixture(scope="module")
def state(layouts):
    """A bare state dict in OpenAI's names, as tensors of torch."""
    return torch.load(layouts / "openai" / "model.pt", weights_only=True)


WRAPPED = {
    "openai/CLIP#83": lambda s: {
        "epoch": 1,
        "model_state_dict": s,
        "optimizer_state_dict": {"state": {0: {"exp_avg": s["text_projection"]}}},
        "loss": torch.tensor(1.0),  # beside the dicts, as that snippet saves it
    },
    "CoN-CLIP": lambda s: {"model": s, "epoch": 1, "optimizer": {}},
    "twice": lambda s: {"model": {"state_dict": s}, "args": {"lr": 1.0}},
    "one dict of another name": lambda s: {"student": s, "step": 3},
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "DataParallel, compiled": lambda s: {
        "state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}
    },
    "lightning": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}},
    "attribute": lambda s: {f"clip_model.{k}": v for k, v in s.items()},
    "attribute of a module": lambda s: {f"model.clip.{k}": v for k, v in s.items()},
    "any attribute": lambda s: {f"student.image_text_model.{k}": v for k, v in s.items()},
    "FSDP": lambda s: {
        f"_fsdp_wrapped_module.{k}".replace(".0.", ".0._fsdp_wrapped_module."): v
        for k, v in s.items()
    },
    "activation checkpointing": lambda s: {
        k.replace("resblocks.1.", "resblocks.1._checkpoint_wrapped_module."): v
        for k, v in s.items()
    },
    "one tower compiled": lambda s: {
        k.replace("visual.", "visual._orig_mod."): v for k, v in s.items()
    },
    "averaged": lambda s: {
        "ema": {"n_averaged": torch.tensor(3)} | {f"module.{k}": v for k, v in s.items()}
    },
}


@pytest.mark.parametrize("case", WRAPPED)
def test_what_training_scripts_save(case, state, layouts, tmp_path):
    torch.save(WRAPPED[case](state), tmp_path / "epoch.pt")
    with pytest.raises(InputError, match=r"does not say its activation.*activation= \(--activ"):
        read_any(tmp_path / "epoch.pt")
    config, params, info = read_any(tmp_path / "epoch.pt", activation="quick_gelu")
    assert config.text.hidden_act == "quick_gelu" and info.activation_source == "given"
    tiny.assert_equal_params(params, read_any(layouts / "hf")[1])
    config, params, info = read_any(tmp_path / "epoch.pt", base=layouts / "hf")
    assert info.activation_source.startswith("hidden_act in") and info.uses_base
    tiny.assert_equal_params(params, read_any(layouts / "hf")[1])


def test_several_state_dicts_in_one_file(state, tmp_path):
    torch.save({"student": state, "teacher": state}, tmp_path / "both.pt")
    with pytest.raises(InputError, match=r"several state dicts \(student, teacher\): save the"):
        read_any(tmp_path / "both.pt")
    others = {"ema": state, "state_dict": state}
    torch.save(others, tmp_path / "both.pt")
    assert read_any(tmp_path / "both.pt", activation="gelu")[2].activation == "gelu"


def test_a_clip_inside_another_model_is_named(state, tmp_path):
    inside = {f"clip_model.{k}": v for k, v in state.items()}
    diffusion = {"cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.ones(2)}
    hugging = {"clip.text_model.final_layer_norm.weight": torch.ones(2)}
    cases = [(inside, "classifier.weight"), (hugging, "classifier.weight")]
    for part, other in (*cases, (diffusion, "model.diffusion_model.out")):
        torch.save(part | {other: torch.zeros(2, 2)}, tmp_path / "larger.pth.tar")
        prefix = next(iter(part)).split("positional")[0].split("text_model")[0]
        found = rf"under '{prefix}' .*beside it {other}: save that part alone"
        with pytest.raises(InputError, match=found):
            read_any(tmp_path / "larger.pth.tar", activation="gelu")


def test_adapters_are_to_be_merged_first(state, tmp_path):
    adapter = {"transformer.resblocks.0.mlp.c_fc.lora_A.weight": torch.zeros(2, 2)}
    wrapped = {f"base_model.model.{name}": t for name, t in (state | adapter).items()}
    for content in (state | adapter, wrapped):
        torch.save(content, tmp_path / "tuned.pt")
        with pytest.raises(InputError, match=r"holds LoRA adapters .*merge_and_unload"):
            read_any(tmp_path / "tuned.pt", activation="gelu")


NAMES = {
    "open_clip_pytorch_model.bin": ("gelu", "assumed: open_clip's default"),
    "vit_b_16-laion2b_e16-af8dbd0c.pth": ("gelu", "of open_clip's laion"),
    "laion400m.pt": ("gelu", "of open_clip's laion"),
    "datacomp_xl_s13b_b90k.bin": ("gelu", "the name datacomp_xl"),
    "ViT-L-14-336px.pt": ("quick_gelu", "the name ViT-L-14-336px.pt"),
    "vit_b_32-quickgelu-laion400m_e32-46683a32.pt": ("quick_gelu", "the name vit_b_32-quickgelu"),
    "negclip.pth": ("quick_gelu", "assumed: OpenAI's clip has no other"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_that_say_which_library_wrote_a_file(name, layouts, tmp_path):
    (tmp_path / name).write_bytes((layouts / "openai" / "model.pt").read_bytes())
    activation, source = NAMES[name]
    config, _, info = read_any(tmp_path / name)
    assert {config.text.hidden_act, config.vision.hidden_act} == {activation}
    assert source in info.activation_source
    assert info.layout == ("open_clip" if activation == "gelu" else "openai")
    other = {"gelu": "quick_gelu", "quick_gelu": "gelu"}[activation]
    assert read_any(tmp_path / name, activation=other)[2].activation_source == "given"


def test_single_files_in_transformers_names(directory, tmp_path):
    """Whole, of the text tower alone, and as a Stable Diffusion checkpoint prefixes it."""
    whole = load_file(directory / "model.safetensors")
    text = {name: t for name, t in whole.items() if name.startswith("text_model.")}
    prefix = "cond_stage_model.transformer."
    expected = read_any(directory)[1]
    kinds = {"whole": whole, "te": text, "sd": {prefix + name: t for name, t in text.items()}}
    kinds["te of transformers 5.6"] = {n.removeprefix("text_model."): t for n, t in text.items()}
    kinds["vision"] = {n: t for n, t in whole.items() if n.startswith("vision_model.")}
    for kind, tensors in kinds.items():
        file = tmp_path / f"{kind}.safetensors"
        save_file(tensors, file)
        with pytest.raises(InputError, match=r"call it model\.safetensors .* or give base= "):
            read_any(file)
        config, params, info = read_any(file, base=directory)
        assert config == read_any(directory)[0] and str(file) in info.label
        tiny.assert_equal_params(params, expected)
    (tmp_path / "config.json").write_bytes((directory / "config.json").read_bytes())
    tiny.assert_equal_params(read_any(tmp_path / "whole.safetensors")[1], expected)


def test_the_folder_of_sentence_transformers(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "0_CLIPModel")
    (tmp_path / "modules.json").write_text("[]")
    _, params, info = read_any(tmp_path)
    assert info.tokenizer == tmp_path / "0_CLIPModel" and info.label == str(tmp_path)
    tiny.assert_equal_params(params, read_any(directory)[1])


def test_heads_of_open_clips_large_models_are_not_64_wide(layouts, state):
    """A lone file does not say them: ViT-H has 80, where OpenAI's rule would take 20 heads."""
    for width, heads in ((1280, 16), (1408, 16), (1664, 16), (1024, 16)):
        wide = dict.fromkeys(("visual.ln_post.weight",), (width,))
        stored = {n: StoredTensor(wide.get(n, t.shape), "float32", None) for n, t in state.items()}
        assert openai.infer_config(stored, "x.pt").vision.heads == heads


def test_a_size_that_openai_has_none_of_says_no_activation(state, tmp_path):
    """MetaCLIP's ViT-H has quick_gelu and LAION's has gelu, under the same names."""
    tensors = {n: t for n, t in state.items() if not n.startswith("visual.")}
    for name, tensor in state.items():
        if name.startswith("visual."):
            shape = [side * 10 if side in (128, 384, 512) else side for side in tensor.shape]
            tensors[name] = torch.zeros(shape, dtype=torch.float16)
    for name, message in (("h14.pt", "does not say its activation"), ("h14-laion2b.pt", None)):
        torch.save(tensors, tmp_path / name)
        if message is None:
            assert read_any(tmp_path / name)[2].activation == "gelu"
            continue
        with pytest.raises(InputError, match=message):
            read_any(tmp_path / name)


def test_a_tower_of_timm_is_named(state, tmp_path):
    """As open_clip's SigLIP has it, in a file without its configuration."""
    tensors = {n: t for n, t in state.items() if not n.startswith("visual.")}
    tensors["visual.trunk.patch_embed.proj.weight"] = torch.zeros(2, 2)
    torch.save(tensors, tmp_path / "siglip.pt")
    with pytest.raises(InputError, match=r"tower is timm's, .*transformers' form \(model_type sig"):
        read_any(tmp_path / "siglip.pt", activation="gelu")


def test_a_larger_vocabulary_has_another_end_token(state):
    stored = {n: StoredTensor(tuple(t.shape), "float32", None) for n, t in state.items()}
    stored["token_embedding.weight"] = StoredTensor((901629, 64), "float32", None)
    with pytest.raises(InputError, match="901,629 tokens, and OpenAI's rule for the end of a text"):
        openai.infer_config(stored, "x.pt")


def test_files_of_a_runs_base_are_compared_with_their_digests(workdir):
    """What changed in them since the run began would change numbers without a word."""
    digests = restore.digests_of_files(workdir / "base")
    (workdir / "config.json").write_text(json.dumps({"base_files": digests}))
    assert read_any(workdir)[2].step == 20
    tiny.edit_config(workdir / "base", logit_scale_init_value=3.0)
    with pytest.raises(InputError, match=r"base is not as this run began: config\.json changed"):
        read_any(workdir)
