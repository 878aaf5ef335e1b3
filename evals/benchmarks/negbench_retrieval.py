"""NegBench retrieval: photos or videos for plain captions, and for captions that also negate.

Source: Alhamoud et al., "Vision-Language Models Do Not Understand Negation" (CVPR 2025, arXiv
2501.09425), github.com/m1k2zoo/negbench (MIT); the CSV files are on its Google Drive. Photos: COCO
val2017; frames of MSR-VTT (`evals.frames` extracts them).

File: a row a photo, with `filepath` and `captions`, a Python list written as text (read without
eval). The negated COCO file has the rows of the plain one, its captions rewritten so that they also
say what is not there. MSR-VTT has one caption a video (`captions` holds it as text).

Protocol (`evaluation/retrieval.py`): cosine of all captions with all photos; recall@k over all
captions, text to image (R@5, and R-Neg@5 on the negated file). The same photos and the same
positions, so the difference of the two is what the negation costs. Many photos suit a negated
caption besides its own; only its own counts.
"""

import functools
from collections.abc import Sequence

from evals.benchmark import Benchmark, Problem, Published
from evals.frames import frames_of
from evals.images import DataRoots, ImageRef
from evals.reading import Fields, read_csv
from evals.retrieval import Captioned, retrieval_problem

DOWNLOAD = "the Google Drive named by github.com/m1k2zoo/negbench (datasets.md)"
HANCLIP = "HANCLIP, table 1"


def load(roots: DataRoots, names: Sequence[str], video: bool = False) -> Problem:
    """Reads the CSV file of one of these names. Raises InputError."""
    file = roots.find(*names, download=DOWNLOAD)
    fields = Fields(file)
    rows = read_csv(file, ("filepath", "image_id", "captions"))
    records = [_record(fields, f"row {i}", row, video) for i, row in enumerate(rows)]
    fields.done()
    views = frames_of if video else None
    return retrieval_problem(roots, file, records, headlines=("t2i_recall@5",), views=views)


def _record(fields: Fields, where: str, row: dict[str, str], video: bool) -> Captioned:
    image = ImageRef(fields.text(row, "filepath", where))
    written = fields.text(row, "captions", where)
    is_list = written.startswith("[")
    captions = fields.texts(row, "captions", where) if is_list or not video else [written]
    name = fields.unique(fields.text(row, "image_id", where), where)
    return Captioned(name, image, tuple(captions))


def _published(model: str, r1: float, r5: float, r10: float) -> list[Published]:
    values = zip((1, 5, 10), (r1, r5, r10), strict=True)
    return [Published(model, f"t2i_recall@{k}", value / 100, HANCLIP) for k, value in values]


_benchmark = functools.partial(
    Benchmark, source="Alhamoud et al., CVPR 2025, github.com/m1k2zoo/negbench", download=DOWNLOAD
)
BENCHMARK = _benchmark(
    name="negbench_retrieval",
    title="NegBench retrieval, COCO, plain captions",
    licence="MIT; captions CC BY 4.0; photos: COCO val2017, Flickr licences",
    load=functools.partial(load, names=("COCO_val_retrieval.csv",)),
    published=(Published("CLIP ViT-B/32", "t2i_recall@5", 0.548, "NegBench"),),
    retention=True,
    task="Which photo does a caption describe?",
)
NEGATED = _benchmark(
    name="negbench_retrieval_negated",
    title="NegBench retrieval, COCO, negated captions",
    licence="MIT; captions CC BY 4.0; photos: COCO val2017, Flickr licences",
    load=functools.partial(
        load, names=("COCO_val_negated_retrieval_llama3.1_rephrased_affneg_true.csv",)
    ),
    published=(
        *_published("CLIP ViT-B/32", 24.93, 47.93, 59.41),
        Published("CLIP ViT-B/32", "i2t_recall@1", 0.4534, HANCLIP),
        Published("NegationCLIP ViT-B/32", "i2t_recall@1", 0.5606, HANCLIP),
        *_published("NegCLIP ViT-B/32", 39.88, 67.17, 77.34),
        *_published("CoN-CLIP ViT-B/32", 26.76, 51.22, 62.56),
        *_published("NegationCLIP ViT-B/32", 38.59, 65.80, 76.39),
        *_published("NegationCLIP ViT-B/16", 41.67, 68.49, 78.38),
        *_published("NegationCLIP ViT-L/14", 45.08, 70.66, 80.38),
        *_published("NegCLIP-CC12M-NegFull ViT-B/32", 41.18, 68.10, 78.26),
    ),
    task="Which photo does a caption describe that also says what is not there?",
)
MSRVTT = _benchmark(
    name="negbench_msrvtt",
    title="NegBench retrieval, MSR-VTT, plain captions",
    licence="MIT; videos: MSR-VTT, for research",
    load=functools.partial(load, names=("msr_vtt_retrieval.csv",), video=True),
    retention=True,
    task="Which video does a caption describe?",
)
MSRVTT_NEGATED = _benchmark(
    name="negbench_msrvtt_negated",
    title="NegBench retrieval, MSR-VTT, negated captions",
    licence="MIT; videos: MSR-VTT, for research",
    load=functools.partial(load, names=("msr_vtt_retrieval_rephrased_llama.csv",), video=True),
    task="Which video does a caption describe that also says what is not there?",
)
