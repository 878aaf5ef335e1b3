"""Image features of another library: what is read, and what is said of what cannot be."""

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from negclip_jax.common.decoding import ImageError
from negclip_jax.common.errors import InputError
from negclip_jax.data import feature_files
from negclip_jax.data.feature_files import ImageFeatures

NAMES = ["b.jpg", "a/c.png", "é.jpg"]


def rows(dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 5)).astype(dtype)


def written(folder, suffix: str, names=NAMES, features=None, model="a/model"):
    file, features = folder / f"x{suffix}", rows() if features is None else features
    if suffix == ".parquet":
        feature_files.write(file, names, features, model)
    elif suffix == ".safetensors":
        said = {"names": json.dumps(names), "model": model}
        save_file({"features": features}, file, metadata=said)
    else:
        np.save(file, features)
        file.with_suffix(".json").write_text(json.dumps({"names": names, "model": model}))
    return file


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("suffix", [".parquet", ".safetensors", ".npy"])
def test_each_format_is_read(tmp_path, suffix, dtype):
    file = written(tmp_path, suffix, features=rows(dtype))
    source = ImageFeatures(str(file))
    assert source.model == "a/model" and source.features.dtype == np.float32
    wanted = source.features[source.rows(["é.jpg", "b.jpg"])]
    np.testing.assert_array_equal(wanted, rows(dtype)[[2, 0]])
    assert source.missing(["x.jpg", "b.jpg", "x.jpg"]) == ["x.jpg"]
    with pytest.raises(ImageError, match=r"b\.jpg: .* holds features and no photos"):
        source.open("b.jpg")


def test_a_pattern_is_one_set(tmp_path):
    feature_files.write(tmp_path / "p-0.parquet", ["a", "b"], rows()[:2], "m")
    feature_files.write(tmp_path / "p-1.parquet", ["c"], rows()[2:], "m")
    found = ImageFeatures(str(tmp_path / "p-*.parquet"))
    np.testing.assert_array_equal(found.features[found.rows("abc")], rows())
    feature_files.write(tmp_path / "p-1.parquet", ["c"], rows()[2:], "other")
    with pytest.raises(InputError, match="its files are of several models: m, other"):
        ImageFeatures(str(tmp_path / "p-*.parquet"))
    feature_files.write(tmp_path / "p-1.parquet", ["a"], rows()[2:], "m")
    with pytest.raises(InputError, match="1 images stand twice in it: a"):
        ImageFeatures(str(tmp_path / "p-*.parquet"))


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors", ".npy"])
def test_damaged_files_are_named(tmp_path, suffix):
    file = written(tmp_path, suffix)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(InputError, match=rf"x{suffix} cannot be read as image features"):
        ImageFeatures(str(file))


def test_what_does_not_fit_is_said(tmp_path, caplog):
    with pytest.raises(InputError, match=r"there is no file .*none\.npy"):
        ImageFeatures(str(tmp_path / "none.npy"))
    (tmp_path / "x.csv").touch()
    with pytest.raises(InputError, match=r"is none of \.parquet, \.safetensors, \.npy"):
        ImageFeatures(str(tmp_path / "x.csv"))
    with pytest.raises(InputError, match=r"float64\[3, 5\] for 3 names, not float32"):
        ImageFeatures(str(written(tmp_path, ".npy", features=rows(np.float64))))
    with pytest.raises(InputError, match=r"float32\[3, 5\] for 2 names"):
        ImageFeatures(str(written(tmp_path, ".safetensors", names=NAMES[:2])))
    ragged = pa.table({"image": ["a", "b"], "feature": [[1.0], [1.0, 2.0]]})
    pq.write_table(ragged, tmp_path / "r.parquet")
    with pytest.raises(InputError, match="its features have several lengths"):
        ImageFeatures(str(tmp_path / "r.parquet"))
    bad = rows()
    bad[1, 2] = np.nan
    with caplog.at_level(logging.WARNING):
        source = ImageFeatures(str(written(tmp_path, ".npy", features=bad)))
    assert source.unusable.tolist() == [False, True, False]
    assert "1 features are not finite and left out: a/c.png" in caplog.text


def test_a_changed_file_is_other_data(tmp_path):
    """A resume would else go on with other features in silence."""
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    digests = set()
    for names, scale in ((["a", "b"], 1), (["a", "c"], 1), (["a", "b"], 2)):
        feature_files.write(tmp_path / "f.parquet", names, rows * scale, "x")
        digests.add(ImageFeatures(str(tmp_path / "f.parquet")).digest)
    assert len(digests) == 3
