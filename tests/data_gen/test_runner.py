"""The runner: a window of images, whole shards on disk, and the first failure stops it."""

import asyncio

import pytest

from data_gen.engines.probe import Pending
from data_gen.records import Caption, ImageItem, Rows, read_table
from data_gen.runner import LocalRunner, cut

IMAGES = [ImageItem(str(i), f"{i}.jpg", (Caption(str(i), "a man"),)) for i in range(10)]


def run(out, process, window=4, together=1):
    shards = cut(IMAGES, 4, "s")
    runner = LocalRunner(out, process, None, window, together)
    asyncio.run(runner.run(shards, lambda _: None))
    return runner, [shard.is_done(out) for shard in shards]


def test_a_window_that_spans_shards(tmp_path):
    at_work, peak = 0, 0

    async def process(images):
        nonlocal at_work, peak
        at_work += 1
        peak = max(peak, at_work)
        await asyncio.sleep(0.005)
        at_work -= 1
        return [Rows(items=[{"image_id": image.image_id}]) for image in images]

    runner, done = run(tmp_path, process)
    assert done == [True, True, True] and peak == 4
    assert (runner.images_done, runner.images_pending) == (10, 0)


def test_images_that_wait_for_a_batch_leave_their_shard_open(tmp_path):
    async def process(images):
        if images[0].image_id == "5":
            raise Pending
        return [Rows()]

    runner, done = run(tmp_path, process)
    assert done == [True, False, True]
    assert (runner.images_done, runner.images_pending) == (9, 1)


def test_a_failure_stops_the_run_and_keeps_what_was_finished(tmp_path):
    started = []

    async def process(images):
        started.append(images[0].image_id)
        await asyncio.sleep(0.001)
        if images[0].image_id == "6":
            raise ValueError("six")
        return [Rows()]

    with pytest.raises(ValueError, match="six"):
        run(tmp_path, process, window=1)
    assert started == [str(i) for i in range(7)]
    shards = cut(IMAGES, 4, "s")
    assert [shard.is_done(tmp_path) for shard in shards] == [True, False, False]


@pytest.mark.parametrize(("window", "peak"), [(1, 3), (4, 4), (9, 8)])
def test_images_that_share_requests_are_of_one_shard_and_begin_at_once(tmp_path, window, peak):
    at_work, most, asked = 0, 0, []

    async def process(images):
        nonlocal at_work, most
        asked.append([image.image_id for image in images])
        at_work += len(images)
        most = max(most, at_work)
        await asyncio.sleep(0.005)
        at_work -= len(images)
        return [Rows(items=[{"image_id": image.image_id}]) for image in images]

    runner, done = run(tmp_path, process, window, together=3)
    assert asked == [["0", "1", "2"], ["3"], ["4", "5", "6"], ["7"], ["8", "9"]]
    assert done == [True, True, True] and runner.images_done == 10 and most <= peak
    rows = [row["image_id"] for row in read_table(tmp_path, "items").to_pylist()]
    assert rows == [str(i) for i in range(10)]


def test_nothing_to_do(tmp_path):
    runner = LocalRunner(tmp_path, None, None, 4)
    asyncio.run(runner.run([], lambda _: None))
    assert runner.images_done == 0
