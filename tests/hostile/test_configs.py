"""Nothing that a checkpoint's or data set's files say is imported, rendered or run."""

import json
import shutil
import sys
import time

import numpy as np
import pytest
from hostile import child
from safetensors.numpy import save_file

from negclip_jax.common.errors import InputError
from negclip_jax.data import tfds
from negclip_jax.interop.config import read_config
from negclip_jax.interop.huggingface import load_params
from negclip_jax.pretrained import CLIP

EVIL = "import pathlib; pathlib.Path({marker!r}).mkdir()\n"


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """Source of a module that would leave `tmp_path`/ran, in a folder where imports look."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    source = EVIL.format(marker=str(tmp_path / "ran"))
    (folder / "evil_module.py").write_text(source)
    yield source
    assert not (tmp_path / "ran").exists()
    assert "evil_module" not in sys.modules


def test_code_beside_a_checkpoint_is_not_run(tiny_checkpoint, trap, tmp_path):
    """As `trust_remote_code`, chat templates and classes of one's own would in other libraries."""
    there = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, there)
    for name in ("modeling_evil", "configuration_evil", "tokenization_evil", "processing_evil"):
        (there / f"{name}.py").write_text(trap)
    evil = {"auto_map": {c: "modeling_evil.Evil" for c in ("AutoConfig", "AutoModel")}}
    evil |= {"trust_remote_code": True, "custom_pipelines": {"x": {"impl": "modeling_evil.E"}}}
    evil |= {"chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"}
    evil |= {"architectures": ["evil_module.Evil"], "_target_": "evil_module.Evil"}
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        content = json.loads((there / name).read_text()) if (there / name).exists() else {}
        (there / name).write_text(json.dumps(content | evil))
    (there / "chat_template.jinja").write_text("{{ evil_module }}")
    model = CLIP.from_pretrained(there)
    expected = CLIP.from_pretrained(tiny_checkpoint)
    ids = model.tokenize("no cat")
    np.testing.assert_array_equal(ids, expected.tokenize("no cat"))
    np.testing.assert_array_equal(model.encode_text(ids), expected.encode_text(ids))


def test_a_tokenizer_class_of_ones_own_is_not_looked_up(tiny_vocabulary, trap, tmp_path):
    from negclip_jax.data.tokenizer import load_tokenizer

    shutil.copytree(tiny_vocabulary, tmp_path / "words")
    config = {"tokenizer_class": "evil_module.Evil", "auto_map": {"AutoTokenizer": "evil_module.E"}}
    (tmp_path / "words" / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path / "words").encode("no")


def test_a_prepared_data_set_imports_no_module(trap, tmp_path):
    """TFDS imports the module of whatever class `features.json` names."""
    folder = tmp_path / "data" / "coco_captions" / "2014" / "1.1.0"
    folder.mkdir(parents=True)
    inner = {"pythonClassName": "evil_module.Evil", "jsonFeature": {"json": "{}"}}
    outer = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    features = {"pythonClassName": outer, "featuresDict": {"features": {"image": inner}}}
    (folder / "features.json").write_text(json.dumps(features))
    info = {"name": "coco_captions", "version": "1.1.0", "configName": "2014"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match=r"features\.json asks for the class evil_module\.Evil"):
        tfds.open_split("coco_captions", "train", str(tmp_path / "data"))
    features["featuresDict"]["features"]["image"] = {"type": "evil_module.Evil", "content": {}}
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(InputError, match=r"evil_module\.Evil"):
        tfds.open_split("coco_captions", "train", str(tmp_path / "data"))


SIZES = [
    ("num_hidden_layers", 10**9),
    ("num_hidden_layers", 1001),
    ("hidden_size", 2**40),
    ("intermediate_size", 10**4000),
    ("vocab_size", 2**31),
    ("max_position_embeddings", 2**20),
    ("num_attention_heads", 0),
    ("hidden_size", -8),
    ("layer_norm_eps", float("nan")),
    ("eos_token_id", [1]),
    ("hidden_act", "\x1b[2Jgelu"),
]


@pytest.mark.parametrize(("key", "value"), SIZES)
def test_sizes_of_no_model_are_refused_at_once(key, value, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {key: value}}))
    started = time.process_time()
    with pytest.raises(InputError) as caught:
        read_config(tmp_path)
    assert time.process_time() - started < 1
    assert "config.json" in str(caught.value) and "\x1b" not in str(caught.value)


def test_two_values_of_one_key_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_act": "gelu", "hidden_act": "quick_gelu"}')
    with pytest.raises(InputError, match="the key 'hidden_act' occurs twice"):
        read_config(tmp_path)


def test_memory_is_not_taken_for_what_a_config_only_claims(tmp_path):
    """A model of 8 TB, and a file with one small tensor."""
    big = {"hidden_size": 65_536, "intermediate_size": 262_144, "num_hidden_layers": 100}
    big |= {"num_attention_heads": 64}
    config = {"text_config": big, "vision_config": big, "projection_dim": 512}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"logit_scale": np.zeros((), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="missing"):
        load_params(tmp_path, read_config(tmp_path))


def test_a_run_is_not_unpacked_to_a_thousand_times_its_size(tmp_path):
    """256 MiB of zeros are a few kilobytes on disk."""
    import orbax.checkpoint as ocp

    from negclip_jax.checkpoints import restore

    item = tmp_path / "params"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(item, {"a": np.zeros(2**26, np.float32)})
    with pytest.raises(InputError, match=r"unpacks to 268,435,456 bytes: refused"):
        restore._to_host(restore.epath.Path(item))


def header(content: bytes, length: int | None = None, data: bytes = bytes(16)) -> bytes:
    length = len(content) if length is None else length
    return length.to_bytes(8, "little") + content + data


def tensors(**entries) -> bytes:
    return json.dumps(entries).encode()


def entry(shape, offsets, dtype="F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SAFETENSORS = {
    "a header of 8 EiB": header(b"{}", 2**63),
    "a header of all bits": header(b"{}", 2**64 - 1),
    "a header of 99 MB": header(b"{}", 99_000_000),
    "no header": b"",
    "an empty header": header(b"", 0),
    "nested": header(b'{"a":' * 10_000),
    "no JSON": header(b"\x80\x02N."),
    "overlapping tensors": header(tensors(a=entry([2], [0, 8]), b=entry([2], [4, 12]))),
    "offsets past the end": header(tensors(a=entry([1000], [0, 4000]))),
    "offsets that turn back": header(tensors(a=entry([1], [8, 4]))),
    "a negative shape": header(tensors(a=entry([-4], [0, 16]))),
    "a shape that overflows": header(tensors(a=entry([2**62, 2**62, 16], [0, 16]))),
    "another size than its shape": header(tensors(a=entry([3], [0, 16]))),
    "an unknown type": header(tensors(a=entry([4], [0, 16], "F99"))),
    "holes": header(tensors(a=entry([1], [0, 4]), b=entry([1], [12, 16]))),
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_odd_safetensors_are_sentences(kind, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(SAFETENSORS[kind])
    with pytest.raises(InputError, match=r"model\.safetensors .*is damaged or incomplete"):
        load_params(tmp_path, read_config(tmp_path))


def test_a_declared_header_is_not_allocated(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(header(b"{}", 99_000_000))
    setup = "from negclip_jax.interop.tensors import open_weights, CheckpointError; import pathlib"
    code = f"""
try:
    result = len(open_weights(pathlib.Path({str(tmp_path)!r})))
except CheckpointError as error:
    result = str(error)
"""
    result, before, after = child.measured(setup, code)
    assert "damaged" in result and after - before < 20
