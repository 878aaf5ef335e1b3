"""Properties of the readers: what is written comes back, and of strangers' bytes only a sentence.

Examples are derived from the tests themselves (`derandomize`): the same in every run.
"""

import io
import json
import posixpath
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from data_gen import answers
from data_gen.annotations import InstanceVerifier
from data_gen.stages.ingest import read_captions
from evals import reading
from negclip_jax.common.errors import InputError
from negclip_jax.common.records import identity
from negclip_jax.data.images import Preprocessor, decode
from negclip_jax.data.pairs import Pair, read_pairs, unsafe_name, write_pairs
from negclip_jax.data.tokenizer import load_tokenizer
from negclip_jax.interop.config import read_config, settings_of
from negclip_jax.interop.open_clip import read_config as read_open_clip
from negclip_jax.interop.tensors import open_weights

EXAMPLES = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=list(HealthCheck),
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
captions = texts.filter(str.strip)
names = texts.map(posixpath.normpath).filter(lambda name: not unsafe_name(name))
pairs = st.builds(
    Pair,
    image=names,
    caption=captions,
    negated=st.none() | captions,
    foils=st.lists(captions, max_size=3).map(tuple),
    image_id=texts | st.integers(0, 10**17).map(str),
    object=st.none() | texts,
    provenance=st.none() | texts,
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, 10**30, -1, 0, "\ud800", "a\0b", "../x", "1e9"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)


def objects(*keys: str) -> st.SearchStrategy:
    """JSON objects with some of these keys and any values, good ones among them."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys(keys, json_values))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("readers")


def accepted(reader, *args) -> bool:
    """Whether a reader took it; False after a sentence that may be printed. Else it raises."""
    try:
        reader(*args)
    except InputError as error:
        said = str(error)
        assert said and len(said) <= 8000 and "Traceback" not in said
        assert all(c.isprintable() or c in "\n\t\u00a0\u3000" or c.isspace() for c in said)
        return False
    return True


@EXAMPLES
@given(st.lists(pairs, min_size=1, max_size=4), st.sampled_from([".json", ".jsonl", ".parquet"]))
def test_pairs_come_back_as_they_were_written(folder, written, suffix):
    if suffix == ".json":  # COCO's layout has one file an id
        ids = {identity(p.image_id) for p in written}
        assume(None not in ids and len(ids) == len({(p.image_id, p.image) for p in written}))
    write_pairs(folder / f"pairs{suffix}", written)
    assert read_pairs(folder / f"pairs{suffix}", require_negated=False) == written


@EXAMPLES
@given(st.lists(objects("image", "caption", "negated", "foils", "image_id", "object"), max_size=3))
def test_any_lines(folder, records):
    lines = [json.dumps(record) for record in records]
    (folder / "any.jsonl").write_text("\n".join(lines))
    accepted(read_pairs, folder / "any.jsonl")


COCO = {
    "images": st.lists(objects("id", "file_name") | json_values, max_size=3),
    "annotations": st.lists(
        objects("id", "image_id", "caption", "updated_caption", "category_id", "bbox", "area")
        | json_values,
        max_size=3,
    ),
    "categories": st.lists(objects("id", "name") | json_values, max_size=2),
}


@EXAMPLES
@given(st.fixed_dictionaries(COCO) | st.fixed_dictionaries({}, optional=COCO) | json_values)
def test_any_annotation_file(folder, content):
    path = folder / "any.json"
    path.write_text(json.dumps(content))
    accepted(read_pairs, path)
    accepted(read_captions, str(path))
    accepted(InstanceVerifier, path)
    accepted(reading.read_json, path, (dict, list))


@EXAMPLES
@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace")))
def test_any_bytes_as_annotations(folder, content):
    for name in ("any.json", "any.jsonl", "any.parquet", "any.csv", "any.txt"):
        (folder / name).write_bytes(content)
        accepted(read_pairs, folder / name)
    accepted(reading.read_json_lines, folder / "any.jsonl")
    accepted(reading.read_csv, folder / "any.csv", ("a",))
    accepted(read_captions, str(folder / "any.json"))


@EXAMPLES
@given(json_values)
def test_any_field_of_a_benchmark(folder, value):
    fields = reading.Fields(folder / "b.json")
    fields.text({"a": value}, "a", "here")
    fields.texts({"a": value}, "a", "here")
    fields.number({"a": value}, "a", "here")
    fields.sequence(value, "a", "here")
    fields.option({"a": value}, "a", "here", ("x", "y"))
    fields.box(value, "here")
    accepted(fields.done)


@EXAMPLES
@given(st.text(max_size=60), st.integers(2, 24))
def test_any_caption_is_tokenized(tiny_vocabulary, text, length):
    tokenizer = load_tokenizer(tiny_vocabulary, context_length=24)
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids)
    row = tokenizer(text, length=length)[0]
    assert row[0] == tokenizer.bos_id and np.count_nonzero(row == tokenizer.eos_id) == 1
    assert row[1 : 1 + min(len(ids), length - 2)].tolist() == ids[: length - 2]


def encoded(form: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


PHOTOS = [encoded(form) for form in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]
edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6)


def edited(content: bytes, changes: list[tuple[float, int]], kept: float) -> bytes:
    content = bytearray(content)
    for place, byte in changes:
        content[int(place * len(content))] = byte
    return bytes(content[: round(kept * len(content))])


@EXAMPLES
@given(st.sampled_from(PHOTOS), edits, st.floats(0.2, 1) | st.just(1.0))
def test_any_damage_to_a_photo(photo, changes, kept):
    data = edited(photo, changes, kept)
    if accepted(decode, data):
        assert decode(data).mode == "RGB"


SECTION = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
           "hidden_act", "layer_norm_eps", "vocab_size", "eos_token_id", "image_size", "patch_size",
           "num_channels", "projection_size", "vision_use_head")  # fmt: skip
CONFIG = {
    "model_type": st.sampled_from(["clip", "siglip", "clip_text_model"]) | json_values,
    "text_config": objects(*SECTION) | json_values,
    "vision_config": objects(*SECTION) | json_values,
    "text_config_dict": objects(*SECTION) | json_values,
    "projection_dim": json_values,
    "logit_scale_init_value": json_values,
}


@EXAMPLES
@given(st.fixed_dictionaries({}, optional=CONFIG))
def test_any_config(folder, content):
    (folder / "config.json").write_text(json.dumps(content))
    accepted(read_config, folder)


OPEN_CLIP = {
    "embed_dim": json_values,
    "text_cfg": objects("width", "layers", "heads", "context_length", "vocab_size", "act_kwargs"),
    "vision_cfg": objects("width", "layers", "head_width", "image_size", "patch_size", "mlp_ratio"),
    "quick_gelu": json_values,
}


@EXAMPLES
@given(st.fixed_dictionaries(OPEN_CLIP), objects("mean", "std", "size", "interpolation"))
def test_any_config_of_open_clip(folder, model, images):
    content = {"model_cfg": model, "preprocess_cfg": images}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    accepted(read_open_clip, folder)


PIPELINE = ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor",
            "image_processor_type", "do_resize", "do_center_crop")  # fmt: skip


@EXAMPLES
@given(objects(*PIPELINE))
def test_any_preprocessing(folder, content):
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    accepted(lambda path: Preprocessor(**settings_of(path)), folder)


@EXAMPLES
@given(
    objects("vocab", "merges") | json_values,
    st.lists(objects("content", "id") | json_values, max_size=2) | json_values,
    objects("bos_token", "eos_token", "tokenizer_class"),
)
def test_any_tokenizer(tmp_path_factory, model, added, settings_):
    folder = tmp_path_factory.mktemp("tokenizer")
    content = {"model": model, "added_tokens": added}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings_))
    accepted(load_tokenizer, folder)


TENSORS = save({"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), np.float16)})


@EXAMPLES
@given(edits, st.floats(0.5, 1) | st.just(1.0))
def test_any_damage_to_safetensors(folder, changes, kept):
    (folder / "model.safetensors").write_bytes(edited(TENSORS, changes, kept))

    def read():
        for tensor in open_weights(folder).values():
            assert tensor.read().shape == tensor.shape

    accepted(read)


words = st.sampled_from([*string.punctuation, "yes", "no", "[", "{", '"', "\n", " ", "1.", "```"])


@EXAMPLES
@given(st.text(max_size=60) | st.lists(words, max_size=40).map("".join), st.integers(1, 4))
def test_any_answer_of_a_model(text, count):
    assert answers.yes_or_no(text) in ("yes", "no", None)
    for found in (answers.string_list(text), answers.numbered(text, count)):
        assert found is None or all(item is None or isinstance(item, str) for item in found)
    assert "\n" not in answers.clean(text)
    answers.normalise_object(text)


@pytest.mark.parametrize(
    "piece", ["[", "{", "[{", '"', "\n", "- ", "1. ", ", ", "a,", "\n \n", "<"]
)
def test_long_answers_take_no_long_time(piece):
    """A regular expression that starts anew at each of them would take minutes."""
    import time

    text, started = piece * (60_000 // len(piece)), time.process_time()
    answers.string_list(text)
    answers.yes_or_no(text)
    answers.clean(text)
    answers.normalise_object(text)
    assert time.process_time() - started < 2
