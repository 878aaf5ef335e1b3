"""Training on image features of a file: no photo is on the disk, and the losses are the same."""

import shutil

import numpy as np
import pytest
from tiny_runs import read_metrics

from negclip_jax.common.errors import InputError
from negclip_jax.data import feature_files
from negclip_jax.interop import export
from negclip_jax.interop.readers import read_any
from negclip_jax.pretrained import CLIP
from negclip_jax.training.image_features import ImageFeatures
from negclip_jax.training.loop import train

SHORT = {"train.total": "4 steps", "data.exact_resize": True}


@pytest.fixture(scope="module")
def features(tiny_checkpoint, tiny_pairs, tmp_path_factory):
    """Those of the model's own tower, in a file."""
    model = CLIP.from_pretrained(tiny_checkpoint)
    photos = sorted((tiny_pairs / "images").glob("*.png"))
    rows = np.asarray(model.encode_image(model.preprocess(photos)))
    file = tmp_path_factory.mktemp("features") / "tiny.parquet"
    feature_files.write(file, [photo.name for photo in photos], rows, str(tiny_checkpoint))
    return file


def test_a_run_without_photos_is_the_run_with_them(
    features, make_config, tmp_path, tiny_checkpoint, one_device
):
    given = SHORT | {"data.images": None, "data.features": str(features)}
    train(make_config(SHORT), str(tmp_path / "photos"))
    train(make_config(given | {"train.total": "2 steps"}), str(tmp_path / "outside"))
    train(make_config(given), str(tmp_path / "outside"))  # resumed
    expected, found = (read_metrics(tmp_path / name) for name in ("photos", "outside"))
    assert expected.keys() == found.keys()
    for step in range(1, 5):
        np.testing.assert_allclose(found[step]["loss"], expected[step]["loss"], rtol=1e-5)
    assert "val/loss" in found[4]
    assert not (tmp_path / "outside" / "features").exists()
    out = tmp_path / "out"
    assert export.main([f"--workdir={tmp_path / 'outside'}", "--step=last", f"--out={out}"]) == 0
    before, after = (read_any(path)[1] for path in (tiny_checkpoint, out))
    np.testing.assert_array_equal(before["visual_projection"], after["visual_projection"])


@pytest.mark.slow
def test_the_caches_own_rows_give_the_same_losses_to_the_bit(
    features, make_config, tmp_path, monkeypatch, one_device
):
    from negclip_jax.training import image_features

    kept, use_cache = [], image_features.use_cache
    monkeypatch.setattr(
        image_features, "use_cache", lambda *a, **k: kept.append(use_cache(*a, **k)) or kept[-1]
    )
    train(make_config(SHORT), str(tmp_path / "photos"))
    loader, file = kept[0][0], tmp_path / "rows.parquet"
    names = list(loader.examples.photos)
    feature_files.write(file, names, np.asarray(loader.cached.features[np.arange(len(names))]), "")
    given = SHORT | {"data.images": None, "data.features": str(file)}
    train(make_config(given), str(tmp_path / "outside"))
    ours, theirs = (tmp_path / name / "metrics.jsonl" for name in ("outside", "photos"))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_what_is_missing_or_of_another_model_is_said(features, make_config, tmp_path, one_device):
    source = ImageFeatures(str(features))
    names = sorted(source._row)

    def run(changes=(), **written):
        file = tmp_path / "f.parquet"
        given = {"names": names, "features": source.features, "model": "x/other"} | written
        feature_files.write(file, given["names"], given["features"], given["model"])
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        settings = {"data.images": None, "data.features": str(file), "train.total": "1 steps"}
        train(make_config(SHORT | settings | dict(changes)), str(tmp_path / "run"))
        return (tmp_path / "run" / "train.log").read_text()

    with pytest.raises(InputError, match=r"1 of 40 images are not in .*f\.parquet: 039\.png"):
        run(names=names[:-1], features=source.features[:-1])
    with pytest.raises(InputError, match=r"features of 39 numbers, and the model's texts have 40"):
        run(features=source.features[:, :-1])
    with pytest.raises(InputError, match=r"optim\.freeze must hold the whole vision tower"):
        run({"optim.freeze": ()})
    with pytest.raises(InputError, match=r"does not go with data\.sources"):
        run({"data.pairs": None, "data.sources": "a: pairs=x images=y weight=1"})
    damaged = source.features.copy()
    damaged[[0, 5, 9]] = np.nan
    with pytest.raises(InputError, match=r"3 of 40 images have no feature in .*f\.parquet"):
        run({"data.max_bad_images": 0.05}, features=damaged)
    run({"data.max_bad_images": 0.1}, features=damaged)
    assert "features of the model x/other, and model.checkpoint=" in run()
