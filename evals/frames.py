"""Frames of videos, as NegBench takes them from MSR-VTT.

    python -m evals.frames --videos=MSRVTT/videos/all --out=MSRVTT/frames

writes four JPEG frames of each video, `video7960_frame0.jpg` to `_frame3.jpg`, which the video
benchmarks then find below the data folders. Needs PyAV (`pip install -e '.[video]'`).

Rule (negbench, `benchmarks/src/evaluation`): five ticks from the first to the last frame, as whole
numbers; the frame half-way between two ticks, rounded half to even; the embedding of a video is the
unit mean of the unit embeddings of its four frames.
"""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from evals import command_line
from evals.images import ImageRef
from negclip_jax.common import atomic_files, extras
from negclip_jax.common.errors import InputError, say
from negclip_jax.common.progress import told

FRAMES = 4
# By its content a file may be a playlist, whatever it is called, and name files and addresses.
_CONTAINERS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm",
    "protocol_whitelist": "file",
}
SUFFIXES = (".mp4", ".avi", ".webm", ".mkv")


def frames_of(video: ImageRef) -> tuple[ImageRef, ...]:
    """The references of a video's extracted frames."""
    stem = PurePosixPath(video.path).stem
    return tuple(ImageRef(f"{stem}_frame{i}.jpg") for i in range(FRAMES))


def frame_numbers(total: int) -> list[int]:
    """Which frames of a video with `total` frames are taken."""
    ticks = np.linspace(0, total - 1, FRAMES + 1).astype(int)
    return [round((int(a) + int(b)) / 2) for a, b in itertools.pairwise(ticks)]


def extract(video: Path, out: Path) -> None:
    """Writes the frames of one video. Raises InputError for one that cannot be decoded."""
    av = extras.require("av", extra="video", why="reading videos")
    targets = [out / PurePosixPath(ref.path) for ref in frames_of(ImageRef(video.name))]
    if all(target.exists() for target in targets):
        return
    try:
        # Containers often do not know their number of frames, so they are counted by decoding.
        with av.open(str(video), container_options=_CONTAINERS) as container:
            total = sum(1 for _ in container.decode(video=0))
        wanted = frame_numbers(total) if total else []
        with av.open(str(video), container_options=_CONTAINERS) as container:
            frames = {
                i: frame.to_image()
                for i, frame in enumerate(container.decode(video=0))
                if i in wanted
            }
    except av.FFmpegError as error:
        raise InputError(f"{video} cannot be decoded as a video ({error}).") from None
    if not wanted:
        raise InputError(f"{video} has no video frames.")
    for target, number in zip(targets, wanted, strict=True):
        with atomic_files.whole_file(target) as unfinished:
            frames[number].save(unfinished, "JPEG", quality=95)


def run(args: argparse.Namespace) -> None:
    """Extracts the frames of all videos of a folder. Raises InputError."""
    if not args.videos.is_dir():
        raise InputError(f"--videos={args.videos} is not a folder.")
    videos = sorted(p for p in args.videos.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not videos:
        raise InputError(f"{args.videos} holds no video ({', '.join(SUFFIXES)}).")
    args.out.mkdir(parents=True, exist_ok=True)
    for video in told(videos, "videos"):
        extract(video, args.out)
    say(f"{len(videos)} videos, {FRAMES} frames each, in {args.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, 1 after a user error, 130 after Ctrl-C."""
    parser = command_line.parser("evals.frames", __doc__)
    parser.add_argument("--videos", type=Path, required=True, help="folder with the videos")
    parser.add_argument("--out", type=Path, required=True, help="folder for the frames")
    stopped = "stopped; the same command continues in {out}"
    return command_line.execute(parser, run, argv, stopped=stopped)


if __name__ == "__main__":
    command_line.exit_with(main)
