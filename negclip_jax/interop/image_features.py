"""Computes image features with another library, in PyTorch, for training on them without photos.

    python -m negclip_jax.interop.image_features --library=transformers \\
        --model=openai/clip-vit-base-patch32 --images=photos --out=features/b32
    python -m negclip_jax.interop.image_features --library=open_clip --model=PE-Core-B-16 \\
        --pretrained=meta --images='wds:cc12m-{0000..1242}.tar' --out=features/pe --shard=0/4

Writes Parquet files into --out, which --config.data.features of launch.py and --features of
python -m evals read; a killed command goes on where it stopped. With --shard=I/N one of N processes
or machines computes its share; the files of all of them, in one folder, are those of one process.
Images are opened as in training and preprocessed by the library itself. No JAX is imported.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import difflib
import hashlib
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from etils import epath
from PIL import Image

from negclip_jax.common import extras, storage
from negclip_jax.common.arguments import Parser
from negclip_jax.common.decoding import ImageError
from negclip_jax.common.errors import InputError, device_errors, say
from negclip_jax.common.problems import first
from negclip_jax.data import feature_files
from negclip_jax.data.examples import stand_in_text
from negclip_jax.data.images import ImageSource
from negclip_jax.data.pairs import read_pairs
from negclip_jax.data.sources import open_images
from negclip_jax.runtime import console

_AHEAD = 2  # batches that are decoded while the device computes
# Of long and short side: a library resizes all of an image before it crops, which is without bound.
_MOST_ELONGATED = 200
_SHARD = re.compile(r"(\d{1,6})/([1-9]\d{0,5})")
_PART = re.compile(r"features-(\d{5})-of-(\d{5})\.parquet")
_TIMM = (
    "timm's towers are read through open_clip: alone they have no text tower to say what their "
    "features are compared with, some end in a classifier or before the projection, and timm's "
    "preprocessing is that of classifiers (crops of 90 %, no squashing for SigLIP). Give "
    "--library=open_clip"
)


@dataclasses.dataclass(frozen=True)
class LibraryModel:
    """A model of another library.

    Attributes:
      name: of the model, for the files: as `model.checkpoint` would name it, where that is known.
      preprocess: from an image in mode RGB to tensors by name, each of one row.
      encode: from the tensors of a batch to features `[B, D]`, a tensor.
    """

    name: str
    preprocess: Callable[[Image.Image], dict[str, Any]]
    encode: Callable[[dict[str, Any]], Any]


def of_open_clip(model: str, pretrained: str | None, device: str) -> LibraryModel:
    """A model of open_clip: a name of its list with `pretrained`, a folder, or a hub id.

    Raises InputError for what it does not know or cannot load.
    """
    package = extras.require("open_clip", extra="features", why="--library=open_clip")
    is_listed = not model.startswith(("hf-hub:", "local-dir:"))
    if is_listed and ("/" in model or Path(model).is_dir()):
        model, is_listed = f"{'local-dir' if Path(model).is_dir() else 'hf-hub'}:{model}", False
    if not is_listed and pretrained:
        raise InputError(
            f"--pretrained={pretrained} goes with a name of open_clip, not with {model}"
        )
    if is_listed and model not in (known := package.list_models()):
        near = difflib.get_close_matches(model, known)
        raise InputError(f"open_clip has no model {model!r}: {first(near or known)}")
    if is_listed and not pretrained:
        tags = package.list_pretrained_tags_by_model(model)
        raise InputError(
            f"--model={model} is an architecture: give --pretrained, a file of weights"
            + (f" or one of {first(tags, len(tags))}" if tags else "")
        )
    try:
        logging.disable(logging.INFO)  # which it narrates at the root logger
        with warnings.catch_warnings():
            # Another activation than in training: every feature would be a little wrong.
            warnings.filterwarnings("error", "QuickGELU mismatch")
            loaded, preprocess = package.create_model_from_pretrained(
                model, pretrained=pretrained, device=device, precision="fp32"
            )
    except (OSError, RuntimeError, ValueError, KeyError, AssertionError, UserWarning) as error:
        raise InputError(f"open_clip cannot load {model}: {storage.root_cause(error)}") from error
    finally:
        logging.disable(logging.NOTSET)
    name = model.removeprefix("hf-hub:").removeprefix("local-dir:")
    if is_listed and not Path(pretrained).is_file():
        hub = (package.get_pretrained_cfg(model, pretrained) or {}).get("hf_hub") or ""
        name = "/".join(hub.split("/")[:2]) or f"{model}/{pretrained}"
    elif is_listed:
        name = pretrained
    loaded.eval()
    return LibraryModel(
        name,
        lambda image: {"image": preprocess(image)[None]},
        lambda batch: loaded.encode_image(batch["image"]),
    )


def of_transformers(model: str, pretrained: str | None, device: str) -> LibraryModel:
    """A model of transformers with image and text features: a folder or a hub id.

    Raises InputError for what it cannot load, and for a model that is not of this kind.
    """
    package = extras.require("transformers", extra="features", why="--library=transformers")
    torch = extras.require("torch", extra="features", why="--library=transformers")
    if pretrained:
        raise InputError(f"--pretrained={pretrained}: transformers takes --model alone")
    # As CLIP's own, resized with Pillow; 5 calls it a backend.
    is_recent = int(package.__version__.partition(".")[0]) >= 5
    pillow = {"backend": "pil"} if is_recent else {"use_fast": False}
    package.utils.logging.set_verbosity_error()
    package.utils.logging.disable_progress_bar()
    try:
        loaded, info = package.AutoModel.from_pretrained(
            model, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
        processor = package.AutoImageProcessor.from_pretrained(
            model, trust_remote_code=False, **pillow
        )
    except (OSError, RuntimeError, ValueError, KeyError, ImportError) as error:
        raise InputError(
            f"transformers cannot load {model}: {storage.root_cause(error)}"
        ) from error
    if not (hasattr(loaded, "get_image_features") and hasattr(loaded, "get_text_features")):
        raise InputError(
            f"{model} is a {type(loaded).__name__}, whose features no text is compared with: give "
            "a model with both towers, as CLIPModel or SiglipModel"
        )
    if lacking := sorted(map(str, info["missing_keys"])):
        raise InputError(
            f"{model} lacks {len(lacking)} tensors, which transformers would make up: "
            f"{first(lacking)}"
        )
    loaded.eval().to(device)

    def encode(batch: dict[str, Any]) -> Any:
        found = loaded.get_image_features(**batch)
        return getattr(found, "pooler_output", found)

    return LibraryModel(
        model, lambda image: dict(processor(images=[image], return_tensors="pt")), encode
    )


def of_timm(model: str, pretrained: str | None, device: str) -> LibraryModel:
    """Raises InputError: why not, and which models of open_clip have the tower."""
    same: list[str] = []
    with contextlib.suppress(InputError):  # where it is not installed
        package = extras.require("open_clip", extra="features", why="--library=open_clip")
        tower = model.removeprefix("timm/").partition(".")[0]
        configs = {name: package.get_model_config(name) for name in package.list_models()}
        same = [n for n, x in configs.items() if x["vision_cfg"].get("timm_model_name") == tower]
    raise InputError(f"{_TIMM} --model=NAME: {tower} is that of {first(same)}" if same else _TIMM)


LIBRARIES = {"open_clip": of_open_clip, "transformers": of_transformers, "timm": of_timm}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which images are in which file.

    Attributes:
      names: of all images, in the order in which they are computed.
      out: folder of the files.
      per_file: images of a file, a multiple of the batch: whoever computes it, its batches are the
        same, and so are its bytes.
      settings: on which the features depend, in every file.
    """

    names: Sequence[str]
    out: epath.Path
    per_file: int
    settings: dict[str, Any]

    @property
    def count(self) -> int:
        """How many files there are to be."""
        return -(-len(self.names) // self.per_file)

    def file(self, number: int) -> epath.Path:
        """Where a file is to be."""
        return self.out / f"features-{number:05d}-of-{self.count:05d}.parquet"

    def images(self, number: int) -> Sequence[str]:
        """The images of a file."""
        return self.names[number * self.per_file : (number + 1) * self.per_file]

    def done(self, numbers: range) -> dict[int, dict[str, str]]:
        """Those of these files that are there, with what could not be read of their images.

        Raises InputError for files of other settings or other images; a damaged file is not there.
        """
        there = sorted(p.name for p in self.out.iterdir()) if self.out.exists() else []
        found = {}
        for match in filter(None, map(_PART.fullmatch, there)):
            number, count = map(int, match.groups())
            is_own = count == self.count and number in numbers
            if not (is_own or not found):
                continue
            try:
                said = feature_files.said_by(self.out / match[0])
                settings = json.loads(said["settings"])
                unreadable = dict(json.loads(said["unreadable"]))
            except (ValueError, KeyError, TypeError, pa.ArrowException, *storage.errors()):
                continue
            differing = [k for k, v in self.settings.items() if settings.get(k) != v]
            if differing:
                told = [f"{k}: {settings.get(k)}, now {self.settings[k]}" for k in differing]
                raise InputError(
                    f"{self.out} holds features with other settings ({'; '.join(told)}): give "
                    "another --out, or the former settings"
                )
            if is_own:
                found[number] = unreadable
        return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, 1 after a user error, 130 after Ctrl-C."""
    args = _parser().parse_args(argv)
    console.set_up_logging()
    try:
        with device_errors("Give a smaller --batch, or --device=cpu"):
            compute(args)
    except (InputError, OSError) as error:
        console.fail(str(error))
        return 1
    except KeyboardInterrupt:
        say("stopped; what is written is kept, and the same command continues", sys.stderr)
        return 130
    return 0


def compute(args: argparse.Namespace) -> None:
    """Computes the files of this process that are not there. Raises InputError."""
    shard = _SHARD.fullmatch(args.shard)
    if shard is None or not int(shard[1]) < int(shard[2]):
        raise InputError(f"--shard={args.shard}: write I/N with I from 0 to N - 1, e.g. 0/4")
    index, shards = map(int, shard.groups())
    if args.library not in LIBRARIES:
        raise InputError(f"--library={args.library} is none of {', '.join(LIBRARIES)}")
    if args.model.startswith(("/", ".")) and not Path(args.model).exists():
        raise InputError(f"--model={args.model} does not exist: give a folder, or a hub id")
    if args.batch < 1 or args.images_per_file < 1:
        raise InputError("--batch and --images-per-file are at least 1")
    source = open_images(args.images)
    names = _names(source, args)
    settings = {
        key: vars(args)[key] for key in ("library", "model", "pretrained", "dtype", "stored")
    }
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    settings |= {"batch": args.batch, "images": f"{len(names)}, digest {digest}"}
    per_file = -(-args.images_per_file // args.batch) * args.batch
    plan = Plan(names, storage.path(args.out), per_file, settings | {"images_per_file": per_file})
    mine = range(plan.count * index // shards, plan.count * (index + 1) // shards)
    unreadable = plan.done(mine)
    left = [number for number in mine if number not in unreadable]
    total = sum(len(plan.images(number)) for number in mine)
    if left:
        torch = extras.require("torch", extra="features", why=f"--library={args.library}")
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        encoder = LIBRARIES[args.library](args.model, args.pretrained, device)
        plan.out.mkdir(parents=True, exist_ok=True)
        done = total - sum(len(plan.images(number)) for number in left)
        threads = args.threads or os.cpu_count() or 1
        with console.Bar("image features", total, done=done) as bar:
            parts = _parts(plan, left, source, encoder, args.batch, threads, (device, args.dtype))
            for number, rows, reasons in parts:
                beside = {"settings": json.dumps(plan.settings), "unreadable": json.dumps(reasons)}
                rows = rows.astype(args.stored)
                images = list(plan.images(number))
                feature_files.write(plan.file(number), images, rows, encoder.name, beside)
                unreadable[number] = reasons
                bar.advance(len(images))
    bad = [reason for number in mine for reason in unreadable[number].values()]
    if bad:
        told = f"{len(bad):,} of {total:,} images cannot be read: {first(bad, separator='; ')}"
        if len(bad) > args.max_bad_images * total:
            raise InputError(f"{told}. --max-bad-images={args.max_bad_images} allows fewer")
        logging.warning("%s", told)
    there = {p.name for p in plan.out.iterdir()} if plan.out.exists() else set()
    absent = sum(plan.file(number).name not in there for number in range(plan.count))
    told = f"{total:,} images of {len(names):,} in {len(mine)} of {plan.count} files"
    more = f"{absent} files of other shards are not there yet" if absent else ""
    say(f"{told}; {more or f'train on them with --config.data.features={args.out}'}")


def _names(source: ImageSource, args: argparse.Namespace) -> list[str]:
    """Which images, in the order of storage. Raises InputError where there are none."""
    if args.pairs is None:
        names = source.names()
    else:
        pairs = read_pairs(args.pairs, require_negated=False)
        named = dict.fromkeys(p.image for p in pairs if stand_in_text(p.image) is None)
        missing = set(source.missing(named))
        names = [name for name in named if name not in missing]
        if missing:
            listed = first([name for name in named if name in missing])
            told = (
                f"{len(missing):,} of {len(named):,} images of {args.pairs} are not there: {listed}"
            )
            if len(missing) > args.max_bad_images * len(named):
                raise InputError(f"{told}. --max-bad-images={args.max_bad_images} allows fewer")
            logging.warning("%s", told)
    if not names:
        raise InputError(f"--images={args.images} holds no image")
    return [names[i] for i in source.storage_order(names).tolist()]


def _parts(
    plan: Plan,
    left: Sequence[int],
    source: ImageSource,
    encoder: LibraryModel,
    size: int,
    threads: int,
    device: tuple[str, str],
) -> Iterator[tuple[int, np.ndarray, dict[str, str]]]:
    """Number of a file, features float32 `[N, D]` with NaN for what cannot be read, and reasons."""
    # It also stands for images that cannot be read, so that batches keep their shape.
    blank = encoder.preprocess(Image.new("RGB", (64, 64)))
    dim = _encoded(encoder, [blank], *device).shape[1]

    def prepared(name: str) -> dict[str, Any] | str:
        try:
            image = source.open(name)
            if max(image.size) > _MOST_ELONGATED * min(image.size):
                raise ImageError(f"{name}: {image.size[0]} x {image.size[1]} pixels are a line")
            return encoder.preprocess(image)
        except ImageError as error:
            return str(error).rstrip(".")
        except (ValueError, RuntimeError, TypeError, OSError) as error:  # of the library
            return f"{name}: its preprocessing fails ({storage.root_cause(error)})"

    waiting: collections.deque[tuple[int, Sequence[str], list]] = collections.deque()
    batches = iter(
        [
            (number, plan.images(number)[start : start + size])
            for number in left
            for start in range(0, len(plan.images(number)), size)
        ]
    )
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    rows, reasons = list[np.ndarray](), dict[str, str]()
    try:
        while True:
            while len(waiting) <= _AHEAD and (batch := next(batches, None)):
                waiting.append((*batch, [pool.submit(prepared, name) for name in batch[1]]))
            if not waiting:
                return
            number, names, futures = waiting.popleft()
            items = [future.result() for future in futures]
            bad = {i: item for i, item in enumerate(items) if isinstance(item, str)}
            found = np.full((len(items), dim), np.nan, np.float32)
            if len(bad) < len(items):
                tensors = [blank if i in bad else item for i, item in enumerate(items)]
                found[:] = _encoded(encoder, tensors, *device)
                found[list(bad)] = np.nan
            rows.append(found)
            reasons |= {names[i]: reason for i, reason in bad.items()}
            if not waiting or waiting[0][0] != number:
                yield number, np.concatenate(rows), reasons
                rows, reasons = [], {}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _encoded(
    encoder: LibraryModel, items: Sequence[dict[str, Any]], device: str, dtype: str
) -> np.ndarray:
    """Features float32 `[B, D]` of preprocessed images. Raises InputError for other shapes."""
    torch = extras.require("torch", extra="features", why="image features")
    batch = {key: torch.cat([item[key] for item in items]).to(device) for key in items[0]}
    lower = contextlib.nullcontext()
    if dtype != "float32":
        lower = torch.autocast(torch.device(device).type, getattr(torch, dtype))
    with torch.inference_mode(), lower:
        found = encoder.encode(batch)
    if getattr(found, "ndim", 0) != 2 or len(found) != len(items):
        shape = list(getattr(found, "shape", ()))
        raise InputError(f"{encoder.name} gives image features {shape}, not one row an image")
    return found.float().cpu().numpy()


def _parser() -> argparse.ArgumentParser:
    parser = Parser("python -m negclip_jax.interop.image_features", __doc__)
    add = parser.add_argument
    help_ = "timm's towers are those of open_clip here"
    add("--library", required=True, metavar="|".join(LIBRARIES), help=help_)
    help_ = "a hub id or folder; of open_clip also a name of its list"
    add("--model", required=True, metavar="MODEL", help=help_)
    add("--pretrained", metavar="TAG", help="weights of a name of open_clip: a tag or a file")
    help_ = (
        "as config.data.images: a folder, gs://..., wds:TARS, parquet:FILES, arrayrecord:FILES, "
    )
    add("--images", required=True, metavar="PHOTOS", help=help_ + "tfds:NAME/SPLIT")
    add(
        "--pairs",
        metavar="FILE",
        help="of images, those of these pairs alone, by their names there",
    )
    add("--out", required=True, metavar="DIR", help="folder of the files, which may be gs://...")
    add("--shard", default="0/1", metavar="I/N", help="share of this process, I from 0")
    add("--batch", type=int, default=64, metavar="N", help="images at a time; default: %(default)s")
    add("--images-per-file", type=int, default=4096, metavar="N", help="default: %(default)s")
    add("--device", metavar="cpu|cuda|cuda:1|mps", help="default: the first GPU, if there is one")
    kinds = ("float32", "bfloat16", "float16")
    add(
        "--dtype", choices=kinds, default="float32", help="of the computation; default: %(default)s"
    )
    kinds = ("float32", "float16")
    add(
        "--stored", choices=kinds, default="float32", help="type in the files; default: %(default)s"
    )
    add("--threads", type=int, metavar="N", help="that open images; default: one a core")
    help_ = "share that may be unreadable; default: %(default)s"
    add("--max-bad-images", type=float, default=0.01, metavar="SHARE", help=help_)
    return parser


if __name__ == "__main__":
    sys.exit(main())
