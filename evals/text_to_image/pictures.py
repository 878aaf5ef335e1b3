"""Pictures of both models on disk, each drawn once.

    OUT/manifest.json                     what all pictures depend on
    OUT/images/base/a-room-with-no-window-1f0c9a2e-3.png
    OUT/images.jsonl                      model, prompt, index, seed, file and SHA-256 of each, and
                                          the manifest's fingerprint

A picture counts where its line is there, names this manifest, and has the digest of the file: one
that a kill has left half-written, or that somebody has changed, is drawn again. The seed depends on
prompt and index alone, so that base and tuned start from the same noise and a longer list of
prompts, or more pictures of each, leaves the others as they are.
"""

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from evals.results import read_earlier
from evals.text_to_image.pipelines import MODELS, Pipelines
from negclip_jax.common import atomic_files, storage
from negclip_jax.common.errors import InputError
from negclip_jax.common.storage import Journal
from negclip_jax.runtime import console
from negclip_jax.runtime.workdir import differences

MANIFEST, LINES, FOLDER = "manifest.json", "images.jsonl", "images"


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture, drawn or not yet."""

    model: str  # "base" or "tuned"
    prompt: str  # its text
    index: int  # which of the prompt's pictures
    file: str  # relative to the output folder
    seed: int  # of its noise
    sha256: str = ""  # of the file; "" before it is drawn
    blank: bool = False  # it is of one colour, which no prompt asks for: numbers overflowed


def seed_of(seed: int, prompt: str, index: int) -> int:
    """Seed of one picture, below 2^53, from the command's seed, the prompt and the index."""
    digest = hashlib.sha256(json.dumps([seed, prompt, index]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11


def file_of(model: str, prompt: str, index: int) -> str:
    """File of one picture: readable, and different for prompts that differ in signs alone."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].strip("-")
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{FOLDER}/{model}/{words or 'prompt'}-{digest}-{index}.png"


class Pictures:
    """The pictures of an output folder."""

    def __init__(self, out: Path, settings: dict[str, Any], seed: int):
        """Opens the folder, with what an earlier command with the same settings drew there.

        `settings` is what the pictures depend on, as JSON keeps it, but for the command's seed.
        Raises InputError where the folder holds other things, or pictures of other settings.
        """
        self.out, self._seed = out, seed
        settings = settings | {"seed": seed}
        path = out / MANIFEST
        old = read_earlier(path, (), f"remove {out}")
        if not path.is_file():
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise InputError(
                    f"--out={out} is not empty and has no {MANIFEST} of this command: give another"
                )
            out.mkdir(parents=True, exist_ok=True)
            storage.write_json(path, settings, ensure_ascii=True)
        elif changed := differences(old, settings):
            pairs = (f"{key} ({was} there, {now} now)" for key, (was, now) in changed.items())
            raise InputError(
                f"{out} holds pictures made with other settings: {', '.join(pairs)}: give another "
                "--out, or remove it"
            )
        text = json.dumps(settings, sort_keys=True)
        self._made_with = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._lines = Journal(out / LINES)
        ours = (row for row in self._lines.rows if row.get("manifest") == self._made_with)
        self._drawn = {row["file"]: row for row in ours if _is_whole(out, row)}

    def wanted(self, prompts: Sequence[str], count: int) -> list[Picture]:
        """`count` pictures a prompt and model, in the order in which they are drawn."""
        pictures = []
        for prompt, model, index in itertools.product(prompts, MODELS, range(count)):
            file = file_of(model, prompt, index)
            drawn = {k: v for k, v in self._drawn.get(file, {}).items() if k in ("sha256", "blank")}
            seed = seed_of(self._seed, prompt, index)
            pictures.append(Picture(model, prompt, index, file, seed, **drawn))
        return pictures

    def draw(
        self, pipelines: Pipelines, prompts: Sequence[str], count: int, *, batch_size: int
    ) -> list[Picture]:
        """Draws what is missing, and returns all pictures.

        Both models draw a prompt before the next one, so that what a kill leaves can be compared.
        Batches are the same however many of their pictures are there already: the last bit of a
        picture depends on its batch.
        """
        wanted, step = self.wanted(prompts, count), batch_size
        missing = sum(not picture.sha256 for picture in wanted)
        with console.Bar("pictures", missing) as bar:
            # Of one model and prompt each, `batch_size` of them at most.
            starts = ((f, s) for f in range(0, len(wanted), count) for s in range(0, count, step))
            for first, start in starts:
                batch = wanted[first + start : first + min(start + step, count)]
                left = [picture for picture in batch if not picture.sha256]
                if not left:
                    continue
                seeds = [picture.seed for picture in batch]
                images = pipelines.draw(batch[0].model, batch[0].prompt, seeds)
                for picture, image in zip(batch, images, strict=True):
                    if not picture.sha256:
                        self._keep(picture, image)
                bar.advance(len(left))
        return self.wanted(prompts, count)

    def _keep(self, picture: Picture, image: Image.Image) -> None:
        path = self.out / picture.file
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_files.whole_file(path) as unfinished:
            image.save(unfinished, "PNG")
            digest = hashlib.sha256(unfinished.read_bytes()).hexdigest()
        blank = all(low == high for low, high in image.convert("RGB").getextrema())
        row = dataclasses.asdict(picture) | {"sha256": digest, "blank": blank}
        row["manifest"] = self._made_with
        self._lines.append(row)
        self._drawn[picture.file] = row


def _is_whole(out: Path, row: dict[str, Any]) -> bool:
    """Whether a line is complete and its file has not changed since."""
    if not {"file", "sha256", "blank"} <= row.keys():
        return False
    try:
        with (out / row["file"]).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == row["sha256"]
    except OSError:
        return False
