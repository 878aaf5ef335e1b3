"""The benchmark of generation, in small: what the issue of cost promises is held to here."""

from types import SimpleNamespace

import pytest

from bench import data_gen, harness


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "w"
    shows = data_gen.world(folder, 24)
    wanted = [("per_caption", False), ("per_image", True), ("frugal", False)]
    return [
        data_gen.cost(folder, shows, variant, 0.0, prefix_cache=cached)
        for variant, cached in wanted
    ]


def test_a_pair_costs_less_than_half_of_the_calls_and_a_fifth_of_the_tokens(costs):
    published, *ours = costs
    assert published["pairs"] > 20
    for row in ours:
        assert row["pairs"] > published["pairs"]
        # Things that are there are asked about as well: with them 0.45 is what it may be.
        assert row["calls_per_pair"] <= 0.45 * published["calls_per_pair"]
        assert row["tokens_per_pair"] <= published["tokens_per_pair"] / 5
        # Without what the probe asks once.
        assert sum(row["stages"][s] for s in ("propose", "verify", "rewrite")) <= 0.45
        assert row["labels"]["present"] > 20 and row["labels"]["absent"] > 20


def test_real_photos_by_their_boxes(tmp_path):
    """By photos, captions and boxes as COCO has them; here they are small."""
    world = tmp_path / "w"
    data_gen.world(world, 12)
    data_gen.boxes(world / "instances.json", 12)
    flags = {"captions": "captions.json", "photos": "photos", "instances": "instances.json"}
    args = SimpleNamespace(latency=0.0, **{key: str(world / name) for key, name in flags.items()})
    result, title, [(header, rows)] = data_gen.real_photos(args, tmp_path)
    assert title == "12 real photos" and result["photos"] == 12
    totals = [float(row[header.index("requests/pair")]) for row in rows]
    alone, usual, alone_careless, careless = totals
    assert 1.9 * usual < alone < alone_careless and usual < careless < 0.45
    assert len({row[1] for row in rows}) == 1  # as many pairs in each


def test_real_photos_need_all_three():
    with pytest.raises(SystemExit, match="need --photos and --instances too"):
        data_gen.main(["--captions=captions.json"])


@pytest.mark.slow
def test_the_client_is_cheap_and_keeps_many_in_flight():
    """Times a generous factor, as tests share their machine."""
    measured = data_gen.client(600, 0)
    assert measured["in_flight"] > 100
    assert measured["cpu_ms_per_call"] < 3


def test_the_tables_show_every_row(costs):
    client = {"text": {"cpu_ms_per_call": 0.5, "calls_per_second": 2000.0, "in_flight": 256}}
    said = harness.markdown(*data_gen.cost_table(costs))
    assert "published (per_caption)" in said and "per_image, prefix cache" in said
    assert "frugal" in said and "| 0.50 " in harness.markdown(*data_gen.client_table(client))


@pytest.mark.slow
def test_labels_take_little_room_and_no_memory_that_grows(tmp_path):
    data_gen.boxes(tmp_path / "instances.json", 1200)
    with harness.Side(
        "bench.data_gen:Labels", tmp_path / "run", tmp_path / "instances.json"
    ) as side:
        found = side("measure")
    assert found["labels"] > 80 * 1200 and found["table_bytes"] < 2 * found["labels"]
    assert found["peak_bytes"] - found["inputs_bytes"] < 200e6
    assert "1,200" in harness.markdown(*data_gen.label_table(found))
