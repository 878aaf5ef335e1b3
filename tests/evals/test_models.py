"""What a model is said to be, and the combinations that are refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from flax import nnx

from evals import models
from negclip_jax.common.errors import InputError
from negclip_jax.interop import huggingface, open_clip, openai, readers
from negclip_jax.models import clip


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A copy of the tiny checkpoint that a test may spoil, and a function that edits a file."""
    path = tmp_path / "clip"
    shutil.copytree(tiny_checkpoint, path)

    def edit(file: str, change) -> str:
        content = json.loads((path / file).read_text())
        change(content)
        (path / file).write_text(json.dumps(content))
        return str(path)

    edit.path = path
    return edit


def test_the_facts_that_numbers_depend_on(tiny_model, tiny_checkpoint):
    facts = tiny_model.facts
    assert facts["weights"] == f"{tiny_checkpoint} (huggingface)"
    assert facts["activation"].startswith("quick_gelu (hidden_act in")
    assert facts["pooling"] == "state at the first token with id 599"
    assert "shortest side to 32 px by Pillow bicubic" in facts["preprocessing"]
    assert "centre crop of 32 px (openai rounding), CLIP's mean and std" in facts["preprocessing"]
    assert facts["precision"] == "float32 weights and arithmetic"
    assert "training" not in facts


def test_crop_and_precision_are_chosen_and_stated(tiny_checkpoint):
    model = models.load(str(tiny_checkpoint), dtype="bfloat16", crop="transformers")
    assert model.preprocess.crop == "transformers" and model.dtype == "bfloat16"
    assert "transformers rounding" in model.facts["preprocessing"]
    assert model.facts["precision"] == "bfloat16 arithmetic on float32 weights"
    with pytest.raises(InputError, match="'float16' is not one of float32, bfloat16"):
        models.load(str(tiny_checkpoint), dtype="float16")


@pytest.mark.parametrize(
    ("text", "name", "path"),
    [
        ("runs/b32", "b32", "runs/b32"),
        ("runs/b32@best/", "b32@best", "runs/b32@best/"),
        ("before=openai/clip-vit-base-patch32", "before", "openai/clip-vit-base-patch32"),
        ("runs/lr=1e-6", "lr=1e-6", "runs/lr=1e-6"),
    ],
)
def test_names(text, name, path):
    assert models.split_name(text) == (name, path)


def test_models_of_one_name_keep_their_paths_apart(tiny_checkpoint, checkpoint):
    shutil.move(checkpoint.path, checkpoint.path.with_name("tiny"))
    paths = [str(tiny_checkpoint), str(checkpoint.path.with_name("tiny"))]
    assert [m.name for m in models.load_all(paths)] == paths
    with pytest.raises(InputError, match="is given twice: use --model=NAME=PATH"):
        models.load_all([paths[0], paths[0]])


def test_a_run_and_its_training(finished_run):
    model = models.load(f"{finished_run.workdir}@15")
    assert model.facts["weights"] == f"step 15 of {finished_run.workdir} (workdir)"
    assert model.facts["training"] == "negated captions, 50% original ones, 1 foils each"
    average = models.load(f"{finished_run.workdir}@15+ema")
    assert "moving average" in average.facts["weights"]
    assert not np.array_equal(average.params["text_projection"], model.params["text_projection"])


def test_the_affirmative_control_says_so(finished_run, tmp_path):
    run = shutil.copytree(finished_run.workdir, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"caption_mode": "original", "foils": 0}
    (run / "config.json").write_text(json.dumps(config))
    assert models.load(str(run)).facts["training"].endswith("the affirmative-only control")


def activation(name):
    def change(config):
        for tower in ("text_config", "vision_config"):
            config[tower]["hidden_act"] = name

    return change


def test_openai_weights_read_with_gelu_are_refused(checkpoint):
    path = checkpoint("config.json", activation("gelu"))
    models.load(path)  # weights of unknown origin may well be of gelu
    checkpoint("config.json", lambda c: c.update(_name_or_path="openai/clip-vit-base-patch32"))
    with pytest.raises(InputError, match=r"OpenAI's weights.*quick_gelu.*read with gelu.*config"):
        models.load(path)
    checkpoint("config.json", activation("quick_gelu"))
    models.load(path)


def test_an_openai_file_read_with_gelu_is_refused(tiny_config, tiny_checkpoint):
    _, _, info = readers.read_any(tiny_checkpoint)
    text = dataclasses.replace(tiny_config.text, hidden_act="gelu")
    vision = dataclasses.replace(tiny_config.vision, hidden_act="gelu")
    config = dataclasses.replace(tiny_config, text=text, vision=vision)
    openai = dataclasses.replace(info, layout="openai", base=None, label="ViT-B-32.pt")
    with pytest.raises(InputError, match="these are OpenAI's weights"):
        models.check_arithmetic(config, openai, info.preprocessor)


@pytest.fixture(scope="module")
def openai_like(tiny_vocabulary):
    """Configuration and random weights of a model that OpenAI's code can run."""
    sizes = {"width": 64, "layers": 1, "heads": 1, "mlp_width": 256}
    text = clip.TextConfig(**sizes, vocab_size=600, context_length=24, eos_token_id=599)
    vision = clip.VisionConfig(**sizes, image_size=32, patch_size=16)
    config = clip.CLIPConfig(text=text, vision=vision, projection_dim=64)
    return config, clip.split(clip.CLIP(config, rngs=nnx.Rngs(0)))[1]


@pytest.mark.parametrize(
    ("layout", "file"),
    [(openai, "model.pt"), (open_clip, ""), (open_clip, "open_clip_model.safetensors")],
)
def test_files_of_other_libraries_are_the_same_model(
    openai_like, layout, file, tiny_vocabulary, tmp_path
):
    plain = huggingface.save(tmp_path / "hf", *openai_like, tokenizer=tiny_vocabulary)
    other = layout.save(tmp_path / "other", *openai_like, tokenizer=tiny_vocabulary)
    expected, found = models.load(str(plain)), models.load(str(other / file))
    assert found.fingerprints == expected.fingerprints
    assert found.facts["activation"].startswith("quick_gelu")


def test_a_bare_file_of_openai(openai_like, tiny_vocabulary, tmp_path):
    saved = openai.save(tmp_path / "x", *openai_like, tokenizer=tiny_vocabulary)
    shutil.copy(saved / "model.pt", tmp_path / "negationclip.pt")
    path, tokenizer = str(tmp_path / "negationclip.pt"), str(tiny_vocabulary)
    model = models.load(path, tokenizer=tokenizer)
    assert "quick_gelu (assumed" in model.facts["activation"]
    assert models.load(path, tokenizer=tokenizer, activation="gelu")
    named = str(shutil.copy(path, tmp_path / "ViT-B-32.pt"))
    with pytest.raises(InputError, match=r"ViT-B-32\.pt: these are OpenAI's weights"):
        models.load(named, tokenizer=tokenizer, activation="gelu")


def test_towers_of_two_activations_are_refused(checkpoint):
    path = checkpoint("config.json", lambda c: c["text_config"].update(hidden_act="gelu"))
    with pytest.raises(InputError, match="text tower is read with gelu and the vision tower with"):
        models.load(path)


def test_before_and_after_of_two_activations_are_refused(checkpoint, tiny_checkpoint, tmp_path):
    path = checkpoint("config.json", activation("gelu"))
    models.load_all([f"before={tiny_checkpoint}", f"again={tiny_checkpoint}"])
    with pytest.raises(InputError, match="before is read with quick_gelu and after with gelu"):
        models.load_all([f"before={tiny_checkpoint}", f"after={path}"])
    # Of two trainings from scratch each has its own.
    config = huggingface.read_config(path)
    params = huggingface.load_params(path, config)
    table = params["text"]["position_embedding"]
    params["text"]["position_embedding"] = np.random.default_rng(0).permutation(table, axis=1)
    other = huggingface.save(tmp_path / "other", config, params, tokenizer=tiny_checkpoint)
    models.load_all([f"before={tiny_checkpoint}", f"other={other}"])


def test_a_model_without_a_tokenizer(checkpoint, tiny_vocabulary):
    for file in ("vocab.json", "merges.txt"):
        (checkpoint.path / file).unlink()
    with pytest.raises(InputError, match=r"has no tokenizer: give the folder .* --tokenizer=DIR"):
        models.load(str(checkpoint.path))
    model = models.load(str(checkpoint.path), tokenizer=str(tiny_vocabulary))
    assert model.tokenizer.eos_id == 599


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "config.json",
            lambda c: c["text_config"].update(eos_token_id=7),
            "texts are read at token 7, and the tokenizer ends them with token 599",
        ),
        (
            "preprocessor_config.json",
            lambda c: c.update(size={"shortest_edge": 24}, crop_size=24),
            "the model reads images of 32 pixels and .*preprocessor_config.json makes 24",
        ),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(checkpoint, file, change, message):
    with pytest.raises(InputError, match=message):
        models.load(checkpoint(file, change))


def test_a_larger_vocabulary_than_the_models_is_refused(tiny_model):
    text = dataclasses.replace(tiny_model.config.text, vocab_size=500)
    config = dataclasses.replace(tiny_model.config, text=text)
    with pytest.raises(InputError, match="tokenizer has 600 tokens and the model 500"):
        models.check_end_token(config, tiny_model.tokenizer, "here")


def test_the_largest_id_must_be_the_end_token(tiny_model):
    """OpenAI's configuration says 2, which means: read at the largest id."""
    text = dataclasses.replace(tiny_model.config.text, eos_token_id=2, pooling="argmax")
    config = dataclasses.replace(tiny_model.config, text=text)
    models.check_end_token(config, tiny_model.tokenizer, "here")
    tokenizer = type(tiny_model.tokenizer).__new__(type(tiny_model.tokenizer))
    tokenizer.__dict__.update(tiny_model.tokenizer.__dict__, eos_id=598)
    with pytest.raises(InputError, match="at the largest token id, and the tokenizer ends them"):
        models.check_end_token(config, tokenizer, "here")
