"""Rankings are cosines of the models' own features, and nothing is encoded twice."""

import numpy as np
import pytest

from evals.search.ranking import PhotoFolder, rank, shown
from negclip_jax.common.errors import InputError
from negclip_jax.embeddings import encoder
from negclip_jax.pretrained import CLIP

pytestmark = pytest.mark.usefixtures("one_device_mesh")
QUERIES = ["a cat", "no dog"]


@pytest.fixture
def folder(photos):
    return PhotoFolder(photos.data)


def test_scores_are_cosines_and_the_order_is_theirs(folder, tiny_model, tiny_checkpoint, tmp_path):
    kept, found = rank([tiny_model], folder, QUERIES, cache=tmp_path)
    assert kept == list(range(12)) and list(found) == ["tiny"]
    paths = [folder.path(ref) for ref in folder.refs]
    wanted = CLIP.from_pretrained(tiny_checkpoint).similarity(paths, QUERIES).T
    np.testing.assert_allclose(found["tiny"], wanted, atol=1e-5)
    first = shown(folder, kept, {"tiny": found["tiny"][1]}, 12)["tiny"]
    assert [row["place"] for row in first] == np.argsort(-found["tiny"][1]).tolist()
    assert [row["rank"] for row in first] == list(range(1, 13))


def test_only_what_is_new_is_encoded(folder, tiny_model, other_model, tmp_path, monkeypatch):
    first = rank([tiny_model], folder, QUERIES, cache=tmp_path)[1]["tiny"]
    encoded = []
    inner = encoder.Tower.encode_next

    def counted(self):
        encoded.append(self.label)
        return inner(self)

    monkeypatch.setattr(encoder.Tower, "encode_next", counted)
    again = rank([tiny_model], folder, QUERIES, cache=tmp_path)[1]["tiny"]
    assert not encoded
    np.testing.assert_array_equal(again, first)
    rank([tiny_model], folder, ["a new query"], cache=tmp_path)
    assert encoded == ["tiny: texts"]
    _, scores = rank([tiny_model, other_model], folder, QUERIES, cache=tmp_path)
    base, tuned = scores.values()
    np.testing.assert_array_equal(base, first)
    assert not np.array_equal(np.argsort(-tuned), np.argsort(-base))


def test_bad_photos_are_named_and_the_others_ranked(photos, tiny_model, tmp_path):
    root = tmp_path / "mixed"
    root.mkdir()
    for i in range(3):
        (root / f"{i}.png").symlink_to(root / f"real{i}.png")
        (root / f"real{i}.png").write_bytes((photos.data / "photos" / f"{i}.png").read_bytes())
    (root / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    (root / "cut2.jpg").write_bytes(b"\xff\xd8\xff")
    (root / "empty.jpg").touch()
    folder = PhotoFolder(root)
    kept, found = rank([tiny_model], folder, QUERIES, cache=tmp_path / "cache")
    assert set(folder.skipped) == {"cut.jpg", "cut2.jpg", "empty.jpg"}
    assert "copy of a bad file" in folder.skipped["cut2.jpg"] + folder.skipped["cut.jpg"]
    assert [folder.refs[i].path for i in kept] == sorted(
        [f"{i}.png" for i in range(3)] + [f"real{i}.png" for i in range(3)]
    )
    np.testing.assert_allclose(found["tiny"][0, :3], found["tiny"][0, 3:], atol=1e-6)  # links


def test_a_folder_of_bad_photos_has_a_message(tiny_model, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"none of its 1 photos can be read; bad\.jpg: "):
        rank([tiny_model], PhotoFolder(tmp_path), QUERIES, cache=tmp_path / "cache")
