"""Frames of videos: which ones, decoding, and the command."""

import numpy as np
import pytest

from evals import frames
from evals.images import ImageRef
from negclip_jax.common.errors import InputError


def test_names_of_frames():
    refs = frames.frames_of(ImageRef("data/video/MSRVTT/videos/all/video7960.mp4"))
    assert [ref.path for ref in refs] == [f"video7960_frame{i}.jpg" for i in range(4)]


@pytest.mark.parametrize("total", [1, 2, 5, 30, 31, 299, 301])
def test_frame_numbers_follow_negbench(total):
    """`ticks = linspace(0, n - 1, 5)` as ints, frame = round((a + b) / 2), half to even."""
    ticks = [int(tick) for tick in np.linspace(0, total - 1, 5)]
    expected = [int(np.round((ticks[i] + ticks[i + 1]) / 2)) for i in range(4)]
    assert frames.frame_numbers(total) == expected
    assert all(0 <= number < total for number in expected)


def test_frame_numbers_of_a_known_video():
    assert frames.frame_numbers(30) == [4, 10, 18, 25]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """30 frames whose grey level is eight times their number."""
    av = pytest.importorskip("av", reason="reading videos needs PyAV: pip install av")
    path = tmp_path_factory.mktemp("videos") / "deep" / "video1.mp4"
    path.parent.mkdir()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.bit_rate, stream.gop_size = 4_000_000, 1  # nearly lossless
        for i in range(30):
            grey = np.full((32, 32, 3), 8 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_frames_are_the_right_ones(video, tmp_path):
    from PIL import Image

    assert frames.main([f"--videos={video.parents[1]}", f"--out={tmp_path}"]) == 0
    for i, number in enumerate([4, 10, 18, 25]):
        with Image.open(tmp_path / f"video1_frame{i}.jpg") as image:
            assert image.size == (32, 32)
            assert np.asarray(image).mean() == pytest.approx(8 * number, abs=3)
    assert len(list(tmp_path.iterdir())) == 4  # nothing unfinished is left


def test_a_video_that_is_done_is_not_decoded_again(video, tmp_path, monkeypatch):
    import av

    frames.extract(video, tmp_path)
    monkeypatch.setattr(av, "open", lambda *_: pytest.fail("decoded again"))
    frames.extract(video, tmp_path)


def test_bad_videos(video, tmp_path, capsys):
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    with pytest.raises(InputError, match=r"broken\.mp4 cannot be decoded"):
        frames.extract(tmp_path / "broken.mp4", tmp_path)
    assert frames.main([f"--videos={tmp_path}", f"--out={tmp_path / 'out'}"]) == 1
    assert "error: " in capsys.readouterr().err


def test_a_playlist_that_is_called_a_video_opens_no_other_file(video, tmp_path):
    """FFmpeg looks at the content: it would read whatever files and addresses are listed."""
    playlist = video.with_name("playlist.mp4")
    playlist.write_text("ffconcat version 1.0\nfile video1.mp4\n")
    try:
        with pytest.raises(InputError, match=r"playlist\.mp4 cannot be decoded"):
            frames.extract(playlist, tmp_path)
    finally:
        playlist.unlink()


def test_bad_folders(tmp_path, capsys):
    assert frames.main([f"--videos={tmp_path / 'absent'}", f"--out={tmp_path}"]) == 1
    assert "absent is not a folder" in capsys.readouterr().err
    assert frames.main([f"--videos={tmp_path}", f"--out={tmp_path}"]) == 1
    assert "holds no video" in capsys.readouterr().err


def test_without_pyav(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[video\]'"):
        frames.extract(tmp_path / "a.mp4", tmp_path)
