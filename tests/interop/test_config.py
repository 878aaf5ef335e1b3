"""The own reader of config.json against transformers' CLIPConfig, and what it refuses."""

import dataclasses
import json

import pytest
import transformers
from interop import tiny

from negclip_jax.interop import config as config_json
from negclip_jax.interop import huggingface
from negclip_jax.interop.config import fields, typed
from negclip_jax.interop.writing import Export
from negclip_jax.models import clip

LAION_H = {
    "model_type": "clip",
    "projection_dim": 1024,
    "text_config": {"hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096}
    | {"num_attention_heads": 16, "num_hidden_layers": 24, "projection_dim": 512},
    "vision_config": {"hidden_act": "gelu", "hidden_size": 1280, "intermediate_size": 5120}
    | {"num_attention_heads": 16, "num_hidden_layers": 32, "patch_size": 14},
}

ACCEPTED = {
    "empty": {},
    "minimal": {"model_type": "clip"},
    "null sections": {"model_type": "clip", "text_config": None, "vision_config": None},
    "tiny": {"text_config": tiny.TEXT, "vision_config": tiny.VISION, "projection_dim": 24},
    "laion h": LAION_H,
    "legacy end token": {"text_config": {"eos_token_id": 2}},
    "activations differ": {"text_config": {"hidden_act": "gelu_new"}},
    "text_config_dict overrides": {
        "text_config": {"num_attention_heads": 2, "eos_token_id": 2},
        "text_config_dict": {"num_attention_heads": 16},
    },
    "vision_config_dict overrides": {
        "vision_config": {"patch_size": 16},
        "vision_config_dict": {"hidden_size": 1024, "num_attention_heads": 16},
    },
    "null text_config_dict": {"text_config": {"vocab_size": 9}, "text_config_dict": None},
    "sizes as pairs": {"vision_config": {"image_size": [336, 336], "patch_size": [14, 14]}},
    "other scale": {"logit_scale_init_value": 4},
}


def write(directory, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / "config.json").write_text(text)
    return directory


@pytest.mark.parametrize("case", ACCEPTED)
def test_reads_what_transformers_reads(case, tmp_path):
    ours = huggingface.read_config(write(tmp_path, ACCEPTED[case]))
    theirs = transformers.CLIPConfig.from_pretrained(tmp_path)
    assert ours.projection_dim == theirs.projection_dim
    assert ours.logit_scale_init == theirs.logit_scale_init_value
    sections = (
        (ours.text, theirs.text_config, config_json._TEXT_KEYS),
        (ours.vision, theirs.vision_config, config_json._VISION_KEYS),
    )
    for tower, section, keys in sections:
        # What other libraries' configurations alone say, and these leave at its default.
        others = {"pooling", "causal", "layer_scale", "projection"}
        assert {f.name for f in dataclasses.fields(tower)} - others == set(keys.values())
        for their_key, our_key in keys.items():
            value = getattr(section, their_key)
            value = value[0] if isinstance(value, (list, tuple)) else value
            assert getattr(tower, our_key) == value, their_key


REFUSED = {
    "align": ({"model_type": "align"}, "'align', not 'clip': its text tower is a BERT"),
    "text tower alone": ({"model_type": "clip_text_model"}, "the text tower alone; give a full"),
    "unheard of": ({"model_type": "bert"}, "'bert', not 'clip': it has another architecture"),
    "no name": ({"model_type": ["clip"]}, "another architecture"),
    "truncated": (
        '{"model_type": "cl',
        r"config.json is not valid JSON at line 1 .*cut short",
    ),
    "not an object": ("[]", "holds a value of type list, not a JSON object"),
    "grey images": ({"vision_config": {"num_channels": 1}}, "num_channels is 1; only 3"),
    "activation": ({"text_config": {"hidden_act": "relu"}}, "unknown activation 'relu'; known"),
    "heads": ({"text_config": {"num_attention_heads": 7}}, "width 512 is not divisible by 7"),
    "no number": ({"text_config": {"hidden_size": "512"}}, "hidden_size is '512', which is not"),
    "several ends": ({"text_config": {"eos_token_id": [1, 2]}}, r"eos_token_id is \[1, 2\]"),
    "boolean": ({"vision_config": {"patch_size": True}}, "patch_size is True, which is not one"),
    "zero": ({"vision_config": {"patch_size": 0}}, "patch_size is 0, which is too small"),
    "not square": ({"vision_config": {"image_size": [224, 336]}}, r"image_size is \[224, 336\]"),
    "no eps": ({"text_config": {"layer_norm_eps": None}}, "layer_norm_eps is None, which is not"),
    "NaN eps": ('{"text_config": {"layer_norm_eps": NaN}}', "layer_norm_eps is nan"),
    "section": ({"text_config": "big"}, "text_config is 'big', not an object"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_file_and_reason(case, tmp_path):
    content, reason = REFUSED[case]
    write(tmp_path, content)
    with pytest.raises(huggingface.CheckpointError, match=reason) as caught:
        huggingface.read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_missing_config(tmp_path):
    with pytest.raises(huggingface.CheckpointError, match=r"has no config\.json"):
        huggingface.read_config(tmp_path)


@pytest.mark.parametrize(
    ("pooling", "eos", "kind"),
    [("argmax", 2, "clip"), ("first_eos", 599, "clip"), ("first_eos", 2, "metaclip_2")],
)
def test_written_config_reads_back(tiny_config, pooling, eos, kind, tmp_path):
    text = dataclasses.replace(tiny_config.text, eos_token_id=eos, pooling=pooling)
    text = dataclasses.replace(text, hidden_act="gelu")
    config = dataclasses.replace(tiny_config, text=text)
    config_json.write_config(tmp_path, Export(config, {}), "float32")
    assert huggingface.read_config(tmp_path) == config
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert theirs.model_type == kind
    assert theirs.text_config.projection_dim == theirs.vision_config.projection_dim == 40
    assert str(theirs.dtype) == "torch.float32"


def test_correction_changes_only_projection_and_dtype():
    raw = {
        "projection_dim": 20,
        "torch_dtype": "float16",
        "extra": {"dtype": "int8"},
        "text_config": {"projection_dim": 512, "torch_dtype": "float16", "hidden_size": 3},
        "text_config_dict": {"hidden_size": 3},
    }
    config = dataclasses.replace(clip.CLIPConfig(), projection_dim=20)
    assert config_json.corrected(raw, config, "float32") == {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 20,
        "torch_dtype": "float32",
        "extra": {"dtype": "int8"},
        "text_config": {"projection_dim": 20, "torch_dtype": "float32", "hidden_size": 3},
        "text_config_dict": {"hidden_size": 3, "projection_dim": 20},
        "vision_config": {"projection_dim": 20},
    }
    assert raw["torch_dtype"] == "float16", "the argument itself must not change"
    assert config_json.corrected({"dtype": "bfloat16"}, config, "float32")["dtype"] == "float32"
    assert config_json.corrected({}, config, "float16")["torch_dtype"] == "float16"


def test_tokenizer_files_go_along(tiny_config, tiny_vocabulary, tmp_path):
    export = Export(tiny_config, {}, tokenizer=tiny_vocabulary)
    config_json.write_config(tmp_path, export, "float32")
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / name).read_bytes() == (tiny_vocabulary / name).read_bytes()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("no")["input_ids"][-1] == tiny_config.text.eos_token_id
    assert tokenizer.model_max_length == tiny_config.text.context_length
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert processor.image_processor.crop_size["height"] == tiny_config.vision.image_size


def test_tokenizer_directory_without_vocabulary(tiny_config, tmp_path):
    with pytest.raises(huggingface.CheckpointError, match=r"no vocab\.json and no merges\.txt"):
        config_json.write_tokenizer(tmp_path, tmp_path, tiny_config)


@dataclasses.dataclass
class Section:
    width: int = 3
    image_size: int = 8
    token_id: int = 5
    eps: float = 0.5
    name: str = "gelu"


FIELDS = {"w": "width", "their_size": "image_size", "i": "token_id", "e": "eps", "n": "name"}


def test_values_that_are_absent_keep_their_default():
    section = {"w": 7, "e": 1, "other": None}
    assert fields(section, FIELDS, "text.", Section()) == {"width": 7, "eps": 1}


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("w", "7", "text.w is '7', which is not one whole number"),
        ("w", True, "is True"),
        ("w", 0, "too small"),
        ("e", float("inf"), "not finite"),
        ("n", 3, "not a name"),
    ],
)
def test_values_of_another_type(key, value, reason):
    with pytest.raises(ValueError, match=reason):
        fields({key: value}, FIELDS, "text.", Section())


def test_sizes_may_be_written_twice():
    assert typed([8, 8], 3, "image_size") == 8
    with pytest.raises(ValueError, match=r"\[8, 9\]"):
        typed([8, 9], 3, "image_size")
    assert typed(0, 3, "token_id") == 0
