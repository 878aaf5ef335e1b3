"""COCO and Flickr30k retrieval on Karpathy's test splits, both ways.

Source: Karpathy and Fei-Fei, "Deep Visual-Semantic Alignments" (CVPR 2015). Files, whichever is
there first: `dataset_coco.json`, `dataset_flickr30k.json` (caption_datasets.zip,
cs.stanford.edu/people/karpathy/deepimagesent), `coco_karpathy_test.json`, `flickr30k_test.json`
(BLIP and ARO, storage.googleapis.com/sfr-vision-language-research/datasets),
`coco_test_karpathy.json`, `flickr30k_test_karpathy.txt` (CLIP_benchmark).

- COCO, 5,000 photos: captions Chen et al., 2015 (CC BY 4.0); photos: COCO val2014,
  images.cocodataset.org/zips/val2014.zip. In-domain for whatever was fine-tuned on COCO captions: a
  rise here is no sign that general ability was kept.
- Flickr30k, 1,000 photos with five captions each: Young et al., "From image descriptions to visual
  denotations" (TACL 2014); photos on request from shannon.cs.illinois.edu/DenotationGraph, for
  research only.

Protocol (CLIP_benchmark `zeroshot_retrieval.py`): raw captions without a prompt, all of them
(COCO: 25,010; some papers keep five a photo), recall@k > 0, text to image over captions and image
to text over photos.
"""

from collections.abc import Sequence
from pathlib import Path

from evals.benchmark import Problem
from evals.images import DataRoots, ImageRef
from evals.reading import Fields, read_json
from evals.retrieval import Captioned, retrieval_problem
from negclip_jax.common.errors import InputError
from negclip_jax.common.strict_json import read_text


def load(roots: DataRoots, *, files: Sequence[str], download: str) -> Problem:
    """Reads the test split of the first file that is there. Raises InputError."""
    file = roots.find(*files, download=download)
    return retrieval_problem(roots, file, read_captions(file, "test"))


def read_captions(file: Path, split: str) -> list[Captioned]:
    """The photos of a split with their captions, in the order of the file.

    Forms: Karpathy's `dataset_*.json` (all splits, `images` with `split` and `sentences`), the
    BLIP-style list of `image` and `caption` (one split), COCO's caption JSON (`images`,
    `annotations`; one split), and `image.jpg,caption` lines under a header (one split). Captions
    are raw, neither lower-cased nor cut. Raises InputError for another form or bad records.
    """
    fields = Fields(file)
    if file.suffix.lower() == ".txt":
        records = _lines(fields)
    else:
        content = read_json(file, (dict, list))
        if isinstance(content, list):  # BLIP's
            names = [fields.text(row, "image", f"item {i}") for i, row in enumerate(content)]
            texts = [fields.texts(row, "caption", f"item {i}") for i, row in enumerate(content)]
            both = zip(names, texts, strict=True)
            records = [Captioned(name, ImageRef(name), tuple(found)) for name, found in both]
        elif "annotations" in content:
            records = _coco(fields, content)
        else:
            records = _karpathy(fields, content, split)
    for record in records:
        fields.unique(record.id, record.id)
    fields.done()
    if not records:
        raise InputError(f"{file} has no photo of the split {split!r}: is it the published file?")
    return records


def _karpathy(fields: Fields, content: dict, split: str) -> list[Captioned]:
    records = []
    for i, image in enumerate(fields.sequence(content, "images", "the file")):
        if fields.text(image, "split", f"images[{i}]") == split:
            where = f"images[{i}]"
            name = fields.text(image, "filename", where)
            folder = image.get("filepath")  # COCO's, "val2014"; Flickr30k has none
            path = f"{folder}/{name}" if isinstance(folder, str) and folder else name
            sentences = fields.sequence(image, "sentences", where)
            captions = [
                fields.text(s, "raw", f"{where}.sentences[{j}]") for j, s in enumerate(sentences)
            ]
            records.append(Captioned(name, ImageRef(path), tuple(captions)))
    return records


def _coco(fields: Fields, content: dict) -> list[Captioned]:
    captions: dict[str, list[str]] = {}
    for i, row in enumerate(fields.sequence(content, "annotations", "the file")):
        where = f"annotations[{i}]"
        image = fields.identity(row, "image_id", where)
        captions.setdefault(image, []).append(fields.text(row, "caption", where))
    records = []
    for i, image in enumerate(fields.sequence(content, "images", "the file")):
        where = f"images[{i}]"
        name, key = fields.text(image, "file_name", where), fields.identity(image, "id", where)
        if key not in captions:
            fields.note("a photo has no caption", where)
        records.append(Captioned(name, ImageRef(name), tuple(captions.get(key, ()))))
    return records


def _lines(fields: Fields) -> Sequence[Captioned]:
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(read_text(fields.path).split("\n")[1:], 2):
        name, found, caption = line.partition(".jpg,")
        if found and caption.strip():
            captions.setdefault(f"{name}.jpg", []).append(caption.removesuffix("\r"))
        elif line.strip():
            fields.note('a line is not "image.jpg,caption"', f"line {number}")
    return [Captioned(name, ImageRef(name), tuple(texts)) for name, texts in captions.items()]
