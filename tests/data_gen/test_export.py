"""What leaves a run: layouts, caps, and the published file with its own ids."""

import collections
import json

import pytest
from fault_server import POOL, FaultServer, arguments, table, world

from data_gen.cli import main
from data_gen.export import export
from data_gen.statements import keeper
from negclip_jax.common.errors import InputError
from negclip_jax.common.provenance import content_hash
from negclip_jax.data.pairs import read_pairs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    shows = world(folder / "w", 4)
    with FaultServer(shows, POOL) as server:
        assert main(arguments(folder / "w", folder / "run", server)) == 0
    return folder


def test_the_published_file_is_the_input_with_one_key_more(finished, tmp_path):
    done = export(finished / "run", tmp_path)
    source = json.loads((finished / "w" / "captions.json").read_text())
    published = json.loads((tmp_path / "published.json").read_text())
    by_id = {row["caption_id"]: row for row in table(finished / "run", "pairs") if row["accepted"]}
    for row in published["annotations"]:
        assert row.pop("updated_caption", None) == by_id[str(row["id"])]["negated_caption"]
    assert published == source and done.pairs == len(by_id)


def test_files_agree_and_ids_are_numbers_again(finished, tmp_path):
    export(finished / "run", tmp_path)
    content = json.loads((tmp_path / "pairs.json").read_text())
    assert {type(image["id"]) for image in content["images"]} == {int}
    assert read_pairs(tmp_path / "pairs.json") == read_pairs(tmp_path / "pairs.parquet")


def test_an_object_with_too_many_pairs_is_thinned(finished):
    rows = {row["pair_id"]: row for row in table(finished / "run", "pairs") if row["accepted"]}

    def kept(number: int | None) -> set[str]:
        keeps = keeper(finished / "run", number)
        return {row["pair_id"] for row in table(finished / "run", "pairs") if keeps(row)}

    every, some = kept(None), kept(1)
    assert every == rows.keys() == kept(1000) and some < kept(2) < every and not kept(0)
    by_object = collections.defaultdict(list)
    for pair_id, row in rows.items():
        by_object[row["object"]].append((content_hash([pair_id]), pair_id))
    for number in (1, 2, 3):
        least = (pair for group in by_object.values() for pair in sorted(group)[:number])
        assert kept(number) == {pair_id for _, pair_id in least}
    assert sorted(rows[i]["object"] for i in some) == sorted({r["object"] for r in rows.values()})


def test_where_the_input_is_gone(finished, tmp_path):
    captions = finished / "w" / "captions.json"
    text = captions.read_text()
    captions.unlink()
    try:
        with pytest.raises(InputError, match="no longer readable there"):
            export(finished / "run", tmp_path)
    finally:
        captions.write_text(text)


def test_a_place_that_cannot_be_written(finished, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught:
        export(finished / "run", tmp_path / "file" / "below")
    assert caught.value.status == 5
