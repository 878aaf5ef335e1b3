"""What the U-Net is given, that nothing else changes, and mistakes before any picture."""

import shutil

import numpy as np
import pytest
import torch
import transformers
from tiny_pipelines import text_encoder, text_encoder_2

from evals.text_to_image import pipelines
from evals.text_to_image.pipelines import Pipelines
from negclip_jax.common.errors import InputError

PROMPT = "a man not wearing a hat"


@pytest.fixture(scope="module")
def painter(sd, tiny_checkpoint):
    return Pipelines(str(sd), str(tiny_checkpoint), device="cpu", steps=2)


@pytest.fixture(scope="module")
def xl_painter(sdxl, tmp_path_factory):
    """SDXL whose second encoder is replaced by one with other weights."""
    tuned = tmp_path_factory.mktemp("tuned")
    text_encoder_2(seed=9).save_pretrained(tuned)
    return Pipelines(str(sdxl), str(tuned), device="cpu", steps=2)


def read_by_the_unet(painter, model):
    """The U-Net's picture of the prompt: its states, and what else it is conditioned on."""
    seen = []
    hook = painter._pipeline.unet.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    painter.draw(model, PROMPT, [0])
    hook.remove()
    # The second row of guidance's two is that of the prompt.
    return seen[0]["encoder_hidden_states"][1], seen[0].get("added_cond_kwargs")


def token_ids(painter):
    tokenizer = painter._tokenizer
    return tokenizer(PROMPT, padding="max_length", max_length=24, return_tensors="pt").input_ids


def test_stable_diffusion_reads_the_tuned_towers_last_states(painter, tiny_checkpoint):
    reference = transformers.CLIPModel.from_pretrained(tiny_checkpoint)
    with torch.no_grad():
        expected = reference.text_model(token_ids(painter)).last_hidden_state[0]
    states, _ = read_by_the_unet(painter, "tuned")
    torch.testing.assert_close(states, expected)
    assert not torch.allclose(read_by_the_unet(painter, "base")[0], expected, atol=1e-2)


def test_sdxl_reads_the_states_before_the_last_block_and_the_projection(xl_painter, sdxl):
    with torch.no_grad():
        first, tuned = (
            encoder(token_ids(xl_painter), output_hidden_states=True)
            for encoder in (
                transformers.CLIPTextModel.from_pretrained(sdxl / "text_encoder"),
                text_encoder_2(seed=9),
            )
        )
    states, added = read_by_the_unet(xl_painter, "tuned")
    expected = torch.cat([first.hidden_states[-2][0], tuned.hidden_states[-2][0]], dim=-1)
    torch.testing.assert_close(states, expected)
    torch.testing.assert_close(added["text_embeds"][1], tuned.text_embeds[0])
    assert xl_painter.settings["replaced"] == "text_encoder_2"
    assert xl_painter.settings["guidance"] == 5.0  # SDXL's own default


def test_only_the_encoder_differs_and_seeds_decide_the_noise(painter):
    first, again = (np.array(painter.draw("base", PROMPT, [1])[0]) for _ in range(2))
    other = np.array(painter.draw("base", PROMPT, [2])[0])
    tuned = np.array(painter.draw("tuned", PROMPT, [1])[0])
    assert first.shape == (32, 32, 3)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and (first != tuned).any()
    batch = painter.draw("base", PROMPT, [2, 1])
    assert np.abs(np.array(batch[1]).astype(int) - first).max() <= 1


def test_a_swap_with_the_same_weights_changes_nothing(sd):
    same = Pipelines(str(sd), str(sd / "text_encoder"), device="cpu", steps=2)
    assert same.notes == ["the tuned encoder has the same weights as the pipeline's own"]
    base, tuned = (same.draw(model, PROMPT, [5])[0] for model in ("base", "tuned"))
    np.testing.assert_array_equal(np.array(base), np.array(tuned))
    assert same.settings["tuned encoder"] == same.settings["weights"]["text_encoder"]


def test_a_download_of_halved_weights_is_read(sd, tiny_checkpoint, painter, tmp_path):
    halved = tmp_path / "sd"
    shutil.copytree(sd, halved)
    for path in list(halved.rglob("*.safetensors")):
        path.rename(path.with_suffix(".fp16.safetensors"))
    same = Pipelines(str(halved), str(tiny_checkpoint), device="cpu", steps=2)
    assert same.settings == painter.settings


def test_bfloat16_draws_nearly_the_same(sd, tiny_checkpoint, painter):
    half = Pipelines(str(sd), str(tiny_checkpoint), device="cpu", steps=2, dtype="bfloat16")
    images = (p.draw("tuned", PROMPT, [1])[0] for p in (half, painter))
    ours, full = (np.array(image, int) for image in images)
    assert 0 < np.abs(ours - full).mean() < 16
    assert half.settings["tuned encoder"] != painter.settings["tuned encoder"]


def test_facts_and_settings_say_what_the_pictures_depend_on(painter):
    facts = painter.facts["tuned"]
    assert facts["text encoder"].startswith("text_encoder from ")
    assert facts["activation"].startswith("quick_gelu (hidden_act in ")
    assert "after the final LayerNorm" in facts["U-Net reads"]
    assert "DDIMScheduler, 2 steps, guidance 7.5" in facts["sampling"]
    assert painter.facts["base"]["text encoder"] == "the pipeline's own"
    assert set(painter.settings["weights"]) == {"text_encoder", "unet", "vae"}
    assert "far from the pipeline's own" in painter.notes[0]


def test_other_weights_other_settings(sd, painter, tmp_path):
    text_encoder(seed=3).save_pretrained(tmp_path)
    other = Pipelines(str(sd), str(tmp_path), device="cpu", steps=2)
    assert other.settings["tuned encoder"] != painter.settings["tuned encoder"]
    assert other.settings["weights"] == painter.settings["weights"]


def test_long_prompts_are_noted(painter):
    painter.check_prompts([PROMPT])
    before = len(painter.notes)
    painter.check_prompts(["a man and a very very long tail of words"])
    assert "1 of 1 prompts are cut at 24 tokens" in painter.notes[before]


def test_another_vocabulary_is_refused(sd, tiny_checkpoint, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, model)
    vocabulary = model / "vocab.json"
    text = vocabulary.read_text().replace('"m"', '"?m"').replace('"n"', '"m"')
    vocabulary.write_text(text.replace('"?m"', '"n"'))
    (model / "tokenizer.json").unlink(missing_ok=True)
    painter = Pipelines(str(sd), str(model), device="cpu", steps=2)
    with pytest.raises(InputError, match=r"another vocabulary than the pipeline's: 'a man' is tok"):
        painter.check_prompts(["a man"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 36}, "--size=36 is not a multiple of 8 pixels"),
        ({"device": "cuda:7"}, "--device=cuda:7 cannot be used"),
        ({"device": "toaster"}, "--device=toaster cannot be used"),
    ],
)
def test_options_that_cannot_be_used(sd, tiny_checkpoint, options, message):
    with pytest.raises(InputError, match=message):
        Pipelines(str(sd), str(tiny_checkpoint), **{"device": "cpu", "steps": 2} | options)


def test_a_pipeline_that_lacks_a_part(sd, tiny_checkpoint, tmp_path):
    broken = tmp_path / "sd"
    shutil.copytree(sd, broken)
    shutil.rmtree(broken / "vae")
    with pytest.raises(InputError, match="cannot be loaded as a StableDiffusionPipeline: "):
        Pipelines(str(broken), str(tiny_checkpoint), device="cpu")


def test_memory_that_does_not_suffice_is_one_line(painter, monkeypatch):
    def exhausted(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(painter._pipeline), "__call__", exhausted)
    with pytest.raises(InputError, match=r"a batch of 1 at 32 pixels does not fit .* --batch-si"):
        painter.draw("base", PROMPT, [0])


def test_a_pipeline_of_the_hub(sd, tiny_checkpoint, monkeypatch):
    def download(name, *, use_safetensors):
        assert use_safetensors and name == "someone/pipeline"
        return str(sd)

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", download)
    base, tuned = "someone/pipeline", str(tiny_checkpoint)
    assert Pipelines(base, tuned, steps=1).settings == Pipelines(str(sd), tuned, steps=1).settings


def test_a_hub_that_does_not_answer_is_one_line(tiny_checkpoint, monkeypatch):
    def download(name, **_):
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", download)
    with pytest.raises(InputError, match=r"'a/b' is not .* \(ConnectionError: no route\); check"):
        Pipelines("a/b", str(tiny_checkpoint))


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[diffusers\]'"):
        pipelines.libraries()
