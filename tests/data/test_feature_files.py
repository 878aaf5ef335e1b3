"""Image features of another library: what is read, and what is said of what cannot be."""

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath
from fake_bucket import bucket, served
from safetensors.numpy import save_file

from negclip_jax.common.decoding import ImageError
from negclip_jax.common.errors import InputError
from negclip_jax.data import feature_files
from negclip_jax.data.feature_files import ImageFeatures

__all__ = ["bucket", "served"]  # fixtures

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
    with pytest.raises(InputError, match=r"image features: .*there is no .*none\.npy"):
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
    bad[1], bad[2] = 1, 0
    source = ImageFeatures(str(written(tmp_path, ".npy", features=bad)))
    assert source.unusable.tolist() == [False, False, True]
    assert "1 features are all 0 and left out: é.jpg" in caplog.text
    assert [source.usable(name) for name in ("b.jpg", "é.jpg", "none")] == [True, False, False]


def test_a_changed_file_is_other_data(tmp_path):
    """A resume would else go on with other features in silence."""
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    digests = set()
    for names, scale in ((["a", "b"], 1), (["a", "c"], 1), (["a", "b"], 2)):
        feature_files.write(tmp_path / "f.parquet", names, rows * scale, "x")
        digests.add(ImageFeatures(str(tmp_path / "f.parquet")).digest)
    assert len(digests) == 3


def test_a_folder_is_all_of_its_files_or_an_error(tmp_path):
    """What one of several machines has not written yet would else be images that are missing."""
    for number, part in enumerate(("ab", "c")):
        name = f"features-{number:05d}-of-00002.parquet"
        feature_files.write(tmp_path / name, list(part), rows()[: len(part)], "m")
    assert ImageFeatures(str(tmp_path)).names == ["a", "b", "c"]
    (tmp_path / "features-00000-of-00002.parquet").unlink()
    with pytest.raises(InputError, match=r"1 of 2 files are not there yet.*features-00000-of-0000"):
        ImageFeatures(str(tmp_path))
    assert ImageFeatures(str(tmp_path / "features-*.parquet")).names == ["c"]  # asked for
    with pytest.raises(InputError, match=r"image features: .* match no file"):
        ImageFeatures(str(tmp_path / "none"))


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors", ".npy"])
def test_files_in_a_bucket_are_read(tmp_path, bucket, suffix):
    written(tmp_path, suffix)
    for file in tmp_path.iterdir():
        bucket.objects["b", f"set/{file.name}"] = (file.read_bytes(), 1)
    name = "gs://b/set" if suffix == ".parquet" else f"gs://b/set/x{suffix}"
    source = ImageFeatures(name)
    assert source.names == NAMES and source.model == "a/model"
    np.testing.assert_array_equal(source.features, rows())
    with pytest.raises(InputError, match=r"there is no gs://b/none"):
        ImageFeatures("gs://b/none.npy")
    feature_files.write(epath.Path("gs://b/new.parquet"), NAMES, rows(), "x", {"by": "y"})
    assert feature_files.said_by(epath.Path("gs://b/new.parquet")) == {"model": "x", "by": "y"}


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ([1.0, 2.0], "its column feature holds double, not lists"),
        (["a", "b"], "its column feature holds string, not lists"),
        ([["a"], ["b"]], r"its column feature holds list<.*string>, not lists"),
        ([[1.0], None], "some images have none"),
        ([[], []], "holds no features"),
    ],
)
def test_columns_of_another_kind_are_refused(tmp_path, column, said):
    kind = pa.list_(pa.float32()) if column == [[], []] else None
    pq.write_table(
        pa.table({"image": ["a", "b"], "feature": pa.array(column, kind)}), tmp_path / "x.parquet"
    )
    with pytest.raises(InputError, match=said):
        ImageFeatures(str(tmp_path / "x.parquet"))
    pq.write_table(
        pa.table({"name": ["a", "b"], "feature": [[1.0], [2.0]]}), tmp_path / "x.parquet"
    )
    with pytest.raises(InputError, match="it has no column image"):
        ImageFeatures(str(tmp_path / "x.parquet"))


def test_a_header_that_claims_more_than_its_file_takes_no_memory(tmp_path):
    file = written(tmp_path, ".npy")
    content = file.read_bytes().replace(b"(3, 5), ", b"(9999999999, 5), ", 1)
    file.write_bytes(content[:200])
    with pytest.raises(InputError, match=r"x\.npy cannot be read as image features"):
        ImageFeatures(str(file))


def test_a_process_reads_a_file_once_until_it_changes(tmp_path):
    file = written(tmp_path, ".parquet")
    first = feature_files.open_features(str(file))
    assert feature_files.open_features(str(file)) is first
    feature_files.write(file, NAMES, 2 * rows(), "other")
    assert feature_files.open_features(str(file)).model == "other"
