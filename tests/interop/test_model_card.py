"""The card of an export: a header that the Hub reads, and only what is known."""

import json

import huggingface_hub
import pytest

from negclip_jax.interop import model_card
from negclip_jax.interop.files import CheckpointError

CARD = {
    "title": "b32",
    "layout": "huggingface",
    "source": "step 20 of runs/b32",
    "base_model": "openai/clip-vit-base-patch32",
    "licence": "mit",
    "facts": {"activation": "quick_gelu (hidden_act in config.json)"},
    "recipe": {"data.pairs": "a|b.json", "optim.lr": 1e-6},
    "scores": {"val/loss (step 20)": "0.5"},
    "check": "read back: equal",
    "code": 'model = CLIPModel.from_pretrained("b32")',
}


def test_the_hub_reads_the_header(tmp_path):
    model_card.write(tmp_path, CARD)
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit" and card.data.library_name == "transformers"
    assert card.data.base_model == "openai/clip-vit-base-patch32"
    assert card.data.tags == ["clip", "negation"]
    for words in (
        "# b32\n",
        '```python\nmodel = CLIPModel.from_pretrained("b32")\n```',
        "| optim.lr | 1e-06 |",
        "| data.pairs | a\\|b.json |",
        "| training data | a\\|b.json |",
        "| val/loss (step 20) | 0.5 |",
        "read back: equal",
    ):
        assert words in card.content


def test_what_is_not_known_is_said_so():
    text = model_card.text(CARD | dict(base_model="", licence="", recipe={}))
    assert "license: unknown" in text and "base_model:" not in text
    assert "| licence of the weights | not recorded; fill in before publishing |" in text
    assert "| training data | none: the weights were converted |" in text
    assert "## Recipe" not in text
    local = model_card.text(CARD | dict(base_model="/data/my clip"))
    assert "base_model:" not in local


def test_paths_of_the_machine_are_not_published(tmp_path, monkeypatch):
    """The last name stays; a folder of the Hub's cache becomes the repository's name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "m1").mkdir(parents=True)
    cache = f"{tmp_path}/hub/models--openai--clip-vit-base-patch32/snapshots/3d74/config.json"
    card = CARD | dict(
        source=f"step 20 of {tmp_path}/my runs/b32",
        base_model="models/m1",
        facts={"activation": f"quick_gelu (hidden_act in {cache})"},
        recipe={"data.pairs": f"{tmp_path}/a b/pairs.json", "data.images": "/x/y/a,/x/z/b", "n": 3},
        code=f'CLIPModel.from_pretrained("{tmp_path}/out/b32")  # https://a.b/c/d',
    )
    places = (f"{tmp_path}/my runs/b32", tmp_path / "out" / "b32")
    model_card.write(tmp_path, card, places)
    written = (tmp_path / "README.md").read_text()
    assert str(tmp_path) not in written and "base_model:" not in written
    for words in (
        "written from step 20 of b32.",
        "| base model | models/m1 |",
        "(hidden_act in openai/clip-vit-base-patch32/config.json)",
        "| data.pairs | pairs.json |",
        "| data.images | a,b |",
        'CLIPModel.from_pretrained("b32")  # https://a.b/c/d',
    ):
        assert words in written


def test_the_header_is_quoted():
    name = 'a"b: c\n# [d]'
    written = model_card.text(CARD | dict(licence=name))
    header = huggingface_hub.repocard.yaml.safe_load(written.split("\n---\n")[0].strip("-"))
    assert header["license"] == name and header["tags"] == ["clip", "negation"]


def test_the_bases_card_is_kept_once(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# CLIP\n")
    assert model_card.licence_of(tmp_path) == "apache-2.0"
    model_card.write(tmp_path, CARD | dict(licence=""))
    model_card.write(tmp_path, CARD | dict(title="again", licence=""))
    assert (tmp_path / "README.base.md").read_text().endswith("# CLIP\n")
    assert "# again" in (tmp_path / "README.md").read_text()
    assert model_card.licence_of(tmp_path) == "apache-2.0"


def test_licences_that_are_none(tmp_path):
    assert model_card.licence_of(None) == model_card.licence_of(tmp_path) == ""
    (tmp_path / "README.md").write_text("# CLIP\nlicense: mit\n")
    assert model_card.licence_of(tmp_path) == "", "only the header counts"
    (tmp_path / "README.md").write_text('---\nlicense: "unknown"\n---\n')
    assert model_card.licence_of(tmp_path) == ""


def test_recipe_and_scores_of_a_real_run(finished_run):
    recipe = model_card.recipe_of_run(finished_run.workdir)
    assert recipe["train.total"] == "20 steps" and recipe["optim.lr"] == 1e-2
    assert recipe["data.caption_mode"] == "mix" and "git_revision" in recipe
    assert model_card.base_of_run(finished_run.workdir).endswith("tiny")
    scores = model_card.scores_of_run(finished_run.workdir, 20)
    assert set(scores) >= {"val/loss (step 20)"}
    assert all(float(value) >= 0 for value in scores.values())
    assert model_card.scores_of_run(finished_run.workdir, 19) == {}


def test_a_folder_that_is_no_run(tmp_path):
    assert model_card.recipe_of_run(tmp_path) == {}
    assert model_card.scores_of_run(tmp_path, 3) == {}
    assert model_card.base_of_run(tmp_path) == ""


def test_scores_of_an_evaluation(tmp_path):
    value = {"value": 0.75, "low": 0.7, "high": 0.8}
    metrics = {"accuracy": value | {"headline": True}, "strict": value | {"headline": False}}
    content = {"benchmarks": {"valse": {"rows": {"tuned": {"metrics": metrics}}}}}
    (tmp_path / "results.json").write_text(json.dumps(content))
    found = model_card.scores_of_evaluation(tmp_path / "results.json")
    assert found == {"valse, accuracy, tuned": "0.750 (0.700 to 0.800)"}
    (tmp_path / "results.json").write_text('{"scores": 3}')
    with pytest.raises(CheckpointError, match=r"is no results\.json of `python -m evals`"):
        model_card.scores_of_evaluation(tmp_path / "results.json")
