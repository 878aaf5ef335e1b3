"""Files of referring expressions are data: a pickle that is a program is refused."""

import json
import os
import pickle

import pytest

from evals.segmentation.sources import read_refs
from negclip_jax.common.errors import InputError

REFS = [{"ref_id": 1, "ann_id": 11, "split": "val", "sentences": [{"sent": "the café"}]}]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_of_every_protocol_and_json_are_read(tmp_path, protocol):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps(REFS, protocol))
    assert read_refs(path) == REFS
    path.with_suffix(".json").write_text(json.dumps(REFS))
    assert read_refs(path.with_suffix(".json")) == REFS


def test_strings_of_python_2_are_read(tmp_path):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xe9'\np3\nsa.")
    assert read_refs(path) == [{"sent": "café"}]


class Program:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_is_a_program_is_refused_and_not_run(tmp_path):
    path, mark = tmp_path / "refs(unc).p", tmp_path / "ran"
    path.write_bytes(pickle.dumps([Program(mark)]))
    with pytest.raises(InputError, match=r"refused: it asks for \w+\.mkdir.*as refs\(unc\)\.json"):
        read_refs(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or no pickle"),
        (pickle.dumps(REFS)[:-8], "damaged or no pickle|refused"),
        (b"no pickle at all", "damaged or no pickle|refused"),
        (pickle.dumps({"a": 1}), "holds no list of referring expressions"),
        (pickle.dumps([]), "holds no list of referring expressions"),
    ],
)
def test_what_is_no_list_of_records(tmp_path, content, message):
    path = tmp_path / "refs(google).p"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_refs(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_refs(tmp_path / "none.p")
