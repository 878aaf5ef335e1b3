"""When image features are cached, what they are, and when they are computed again."""

import dataclasses
import logging
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath
from flax import nnx
from tiny_tars import write_photos

from configs import common
from negclip_jax.common.errors import InputError
from negclip_jax.data.examples import tokenize_pairs
from negclip_jax.data.images import ImageDirectory, Preprocessor
from negclip_jax.data.loader import CachedFeatures, PairLoader
from negclip_jax.data.pairs import read_pairs
from negclip_jax.data.shard_images import TarImages
from negclip_jax.data.statements import read_statements
from negclip_jax.data.tokenizer import load_tokenizer
from negclip_jax.embeddings import encoder
from negclip_jax.embeddings.store import EmbeddingStore
from negclip_jax.models import clip
from negclip_jax.models.normalisation import normalise_pixels
from negclip_jax.runtime import sharding
from negclip_jax.training import image_features, patterns


@pytest.mark.parametrize(
    ("freeze", "constant"),
    [
        (("vision/.*", "visual_projection"), True),
        (("vision/.*", "visual_projection", "text/.*"), True),
        (("vision/.*",), False),
        (("visual_projection",), False),
        (("vision/blocks/0/.*", "vision/[^b].*", "visual_projection"), False),
        ((), False),
    ],
)
def test_constant_means_that_nothing_an_image_passes_is_trained(tiny_config, freeze, constant):
    _, abstract = clip.abstract(tiny_config)
    assert image_features.are_constant(patterns.trainable(abstract, freeze)) == constant


@pytest.fixture(scope="module")
def parts(tiny_config, tiny_pairs, tiny_vocabulary):
    """A model, the constants of its preprocessing, and a loader of all pairs."""
    _, params = clip.split(clip.CLIP(tiny_config, rngs=nnx.Rngs(0)))
    pairs = read_pairs(tiny_pairs / "pairs.json")
    names = sorted({pair.image for pair in pairs})
    tokenizer = load_tokenizer(tiny_vocabulary, context_length=24)
    preprocess = Preprocessor(size=32, resize=32)
    loader = PairLoader(
        examples=tokenize_pairs(pairs, names, tokenizer, caption_mode="negated", foils=0),
        images=ImageDirectory(tiny_pairs / "images"),
        preprocess=preprocess,
        batch_size=8,
        threads=2,
    )
    return tiny_config, params, loader


def use_cache(parts, workdir, *, devices=1, dtype="float32", **data):
    config, params, loader = parts
    mesh = sharding.make_mesh(data=-1, fsdp=1, devices=jax.devices()[:devices])
    section = common.base().data
    cache = {key: section[key] for key in ("cache_features", "cache_dir")} | data
    params = jax.device_put(params, sharding.replicated(mesh))
    model = (config, params, dtype)
    workdir = epath.Path(workdir)
    return image_features.use_cache(workdir, [loader, loader], model, mesh, **cache)


def kept(workdir) -> set[str]:
    return {path.name for path in (workdir / "features").glob("*.rows")}


@pytest.mark.parametrize("devices", [1, 8])
def test_features_are_those_of_the_tower(parts, tmp_path, devices):
    config, params, loader = parts
    cached, validation = use_cache(parts, tmp_path, devices=devices)
    assert validation.cached is cached.cached and not cached.cached.unreadable.any()
    pixels = np.stack(
        [loader.preprocess.uint8(loader.images.open(name)) for name in loader.examples.images]
    )
    graphdef, _ = clip.abstract(config)
    model = nnx.merge(graphdef, params)
    inputs = normalise_pixels(pixels, loader.preprocess.mean, loader.preprocess.std)
    expected = jax.jit(model.encode_image)(inputs)
    assert (
        cached.cached.features.shape == (40, 40) and cached.cached.features[0].dtype == np.float32
    )
    np.testing.assert_allclose(cached.cached.features, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(np.diff(expected, axis=0)).max(axis=1).min() > 1e-3, "rows are all alike"


def test_what_was_computed_is_not_computed_again(parts, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    first, _ = use_cache(parts, tmp_path)
    assert f"image features of 40 images come from {tmp_path / 'features'}" in caplog.text
    monkeypatch.setattr(encoder.Tower, "encode_next", None)
    second, _ = use_cache(parts, tmp_path, devices=8)
    np.testing.assert_array_equal(first.cached.features, second.cached.features)


def test_whatever_changes_a_feature_changes_the_file(parts, tmp_path):
    config, params, loader = parts
    use_cache(parts, tmp_path)
    assert len(kept(tmp_path)) == 1
    other_text = params | {"text_projection": params["text_projection"] + 1}
    use_cache((config, other_text, loader), tmp_path)
    assert len(kept(tmp_path)) == 1, "captions do not matter"
    use_cache(parts, tmp_path, dtype="bfloat16")
    other_head = params | {"visual_projection": params["visual_projection"] + 1}
    use_cache((config, other_head, loader), tmp_path)
    cropped = dataclasses.replace(loader.preprocess, crop="transformers")
    use_cache((config, params, dataclasses.replace(loader, preprocess=cropped)), tmp_path)
    assert len(kept(tmp_path)) == 4


def test_the_folder_is_a_setting_and_the_cache_can_be_off(parts, tmp_path):
    loader = parts[2]
    loaders = use_cache(parts, tmp_path / "run", cache_features=False)
    assert loaders == [loader, loader] and not (tmp_path / "run").exists()
    use_cache(parts, tmp_path / "run", cache_dir=str(tmp_path / "shared"))
    assert (tmp_path / "shared").is_dir() and not (tmp_path / "run").exists()


class OneBroken(ImageDirectory):
    """Images of which one file is no image."""

    def read(self, name):
        return b"" if name == "005.png" else super().read(name)

    def open(self, name):
        from negclip_jax.data.images import decode

        return decode(self.read(name), name=name)


def test_unreadable_images_count_against_their_share(parts, tmp_path):
    config, params, loader = parts
    broken = OneBroken(loader.images.root)
    tolerant = dataclasses.replace(loader, images=broken, max_bad_images=0.05)
    cached, _ = use_cache((config, params, tolerant), tmp_path)
    assert np.flatnonzero(cached.cached.unreadable).tolist() == [5]
    strict = dataclasses.replace(tolerant, max_bad_images=0.01)
    message = r"1 of 40 images could not be read, .*max_bad_images=0\.01 allows: 005\.png"
    with pytest.raises(InputError, match=message):
        use_cache((config, params, strict), tmp_path)


def test_a_killed_build_continues_and_gives_the_same_bits(parts, tmp_path, monkeypatch):
    whole, _ = use_cache(parts, tmp_path / "whole")
    monkeypatch.setattr(encoder, "_TRAINING_IMAGES_PER_DEVICE", 8)
    encode_next, batches = encoder.Tower.encode_next, []

    def killed(tower):
        if len(batches) == 2:
            raise KeyboardInterrupt
        encode_next(tower)
        batches.append(tower.pending)

    monkeypatch.setattr(encoder.Tower, "encode_next", killed)
    undisturbed = tmp_path / "undisturbed"
    with pytest.raises(KeyboardInterrupt):
        use_cache(parts, tmp_path)
    assert batches == [32, 24]
    (file,) = (tmp_path / "features").glob("*.rows")
    with file.open("ab") as stream:
        stream.write(b"what a kill cut short")
    monkeypatch.setattr(encoder.Tower, "encode_next", encode_next)
    resumed, _ = use_cache(parts, tmp_path)
    use_cache(parts, undisturbed)
    (other,) = (undisturbed / "features").glob("*.rows")
    assert file.read_bytes() == other.read_bytes()
    np.testing.assert_allclose(resumed.cached.features, whole.cached.features, rtol=1e-5, atol=1e-6)


def test_what_a_flipped_bit_hit_is_named_and_computed_again(parts, tmp_path, caplog):
    before, _ = use_cache(parts, tmp_path)
    expected = np.asarray(before.cached.features)
    (file,) = (tmp_path / "features").glob("*.rows")
    content = file.read_bytes()
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 16
    file.write_bytes(damaged)
    after, _ = use_cache(parts, tmp_path)
    assert f"{file} is damaged: 1 of its 40 embeddings have another checksum" in caplog.text
    np.testing.assert_array_equal(after.cached.features, expected)
    assert file.read_bytes() == content


def test_a_new_image_is_computed_alone(parts, tmp_path, monkeypatch):
    """Rows are kept by content: what other pairs have in common with these is not new."""
    config, params, loader = parts
    fewer = dataclasses.replace(loader.examples, images=loader.examples.images[:25])
    use_cache((config, params, dataclasses.replace(loader, examples=fewer)), tmp_path)
    encoded, add = [], EmbeddingStore.add
    monkeypatch.setattr(
        EmbeddingStore, "add", lambda s, k, rows: encoded.append(len(k)) or add(s, k, rows)
    )
    found, _ = use_cache(parts, tmp_path)
    assert sum(encoded) == 15 and len(kept(tmp_path)) == 1
    whole, _ = use_cache(parts, tmp_path / "whole")
    np.testing.assert_allclose(found.cached.features, whole.cached.features, rtol=1e-5, atol=1e-6)


def test_tars_are_read_in_their_own_order_and_give_the_features_of_the_folder(
    parts, tmp_path, monkeypatch
):
    config, params, loader = parts
    names = loader.examples.images
    places = np.random.default_rng(0).permutation(40)
    for i in range(2):  # in which neighbours by name are none
        part = [names[j] for j in places[20 * i : 20 * i + 20]]
        write_photos(tmp_path / f"{i}.tar", Path(loader.images.root), part)
    tars, read = TarImages(str(tmp_path / "?.tar")), []
    monkeypatch.setattr(encoder, "_TRAINING_IMAGES_PER_DEVICE", 8)
    folder, _ = use_cache(parts, tmp_path / "folder")
    shard_read = tars.shards.read
    monkeypatch.setattr(tars.shards, "read", lambda *w: read.append(w[:2]) or shard_read(*w))
    one_thread = dataclasses.replace(loader, images=tars, threads=1)
    found, _ = use_cache((config, params, one_thread), tmp_path / "tars")
    np.testing.assert_array_equal(found.cached.features, np.asarray(folder.cached.features))
    digests, encoded = read[:40], read[40:]
    assert len(read) == 80 and encoded == sorted(encoded) and sorted(digests) == encoded
    ((ours,), (theirs,)) = ((tmp_path / x / "features").glob("*.rows") for x in ("tars", "folder"))
    assert ours.name == theirs.name and ours.read_bytes() != theirs.read_bytes()
    size = len(ours.read_bytes()) // 40
    rows = [
        sorted(file.read_bytes()[i : i + size] for i in range(0, 40 * size, size))
        for file in (ours, theirs)
    ]
    assert rows[0] == rows[1]
    monkeypatch.setattr(encoder.Tower, "encode_next", None)
    use_cache((config, params, one_thread), tmp_path / "folder")  # the same photos


@dataclasses.dataclass
class Loader:
    examples: SimpleNamespace
    cached: CachedFeatures
    shows_opposites: bool = False


def test_what_the_image_side_allows(tmp_path, tiny_vocabulary, caplog):
    """Of one object features tell, of another they do not; a third is on too few photos."""
    rng = np.random.default_rng(0)
    count, is_held = 240, np.arange(240) % 4 == 0
    there = {name: rng.random(count) < 0.5 for name in ("dog", "cat")}
    there["fox"] = np.arange(count) == 5
    features = rng.normal(size=(count, 6)).astype(np.float32)
    features[:, 2] += 4 * there["dog"]
    rows = []
    for i in range(count):
        for name, present in there.items():
            row = {"image": f"{i}.png", "objects": [name], "caption_id": None}
            rows.append(row | {"text": f"no {name}", "truth": not present[i], "polarity": "denies"})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "said.parquet")
    known = read_statements(
        tmp_path / "said.parquet",
        [f"{i}.png" for i in range(count)],
        load_tokenizer(tiny_vocabulary, context_length=24),
        true_texts=1,
        false_texts=1,
        truncated="drop",
    ).compared_among(np.flatnonzero(is_held))

    def loader(features, unreadable=None):
        unreadable = np.zeros(count, bool) if unreadable is None else unreadable
        return Loader(SimpleNamespace(statements=known), CachedFeatures(features, unreadable))

    def probe(*args):
        return image_features.image_choice_probe(loader(*args))

    caplog.set_level(logging.INFO)
    found = probe(features)
    assert "probes of 2 objects" in caplog.text  # of the fox there is nothing to fit
    # Almost always right about dogs, by chance about cats.
    assert 0.69 < found < 0.79
    # Fitted on the photos of training alone: what only held-out ones would tell does not help.
    told = rng.normal(size=(count, 6)).astype(np.float32)
    told[is_held, 2] += 4 * there["dog"][is_held]
    assert abs(probe(told) - 0.5) < 0.12
    # Photos that cannot be read take no part.
    broken = features.copy()
    broken[::7] = np.nan
    assert 0.65 < probe(broken, np.arange(count) % 7 == 0) < 0.8
    is_dog = there["dog"] & ~is_held
    assert probe(features, is_dog) is not None and probe(features, ~is_held) is None
    # The weight that a configuration leaves open follows from it.
    loaders = [loader(features), loader(features), loader(features, ~is_held)]
    shown, probes, weight = image_features.show_opposites(loaders, None)
    assert probes == [found, None] and weight == round(9 - 8 * found, 1) > 2.5
    assert f"image_choice_weight is {weight} by what the images allow" in caplog.text
    assert all(x.shows_opposites for x in shown)
    assert image_features.show_opposites(loaders, 0.5)[1:] == ([found, None], 0.5)
    assert image_features.show_opposites(loaders, 0.0) == (loaders, [None, None], 0.0)
    assert image_features.show_opposites(loaders[:1], None)[2] == 1.0
