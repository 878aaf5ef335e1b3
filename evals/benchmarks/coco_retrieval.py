"""COCO retrieval on Karpathy's test split, 5,000 photos, both ways.

Source: Karpathy and Fei-Fei, "Deep Visual-Semantic Alignments" (CVPR 2015); captions Chen et al.,
2015 (CC BY 4.0). File, whichever is there first: `dataset_coco.json` (caption_datasets.zip,
cs.stanford.edu/people/karpathy/deepimagesent), `coco_karpathy_test.json` (BLIP and ARO,
storage.googleapis.com/sfr-vision-language-research/datasets), `coco_test_karpathy.json`
(CLIP_benchmark). Photos: COCO val2014, images.cocodataset.org/zips/val2014.zip.

Protocol (CLIP_benchmark `zeroshot_retrieval.py`): raw captions without a prompt, all of them
(25,010; some papers keep five a photo), recall@k > 0, text to image over captions and image to text
over photos. In-domain for whatever was fine-tuned on COCO captions: a rise here is no sign that
general ability was kept.
"""

from evals.benchmark import Benchmark, Problem, Published
from evals.captions import read_captions
from evals.images import DataRoots
from evals.retrieval import retrieval_problem

FILES = ("dataset_coco.json", "coco_karpathy_test.json", "coco_test_karpathy.json")
DOWNLOAD = "cs.stanford.edu/people/karpathy/deepimagesent (caption_datasets.zip)"
SOURCE = "CLIP_benchmark"


def load(roots: DataRoots) -> Problem:
    """Reads the test split. Raises InputError."""
    file = roots.find(*FILES, download=DOWNLOAD)
    return retrieval_problem(roots, file, read_captions(file, "test"))


def _published(model: str, t2i: float, i2t: float) -> tuple[Published, Published]:
    return (
        Published(model, "t2i_recall@5", t2i / 100, SOURCE),
        Published(model, "i2t_recall@5", i2t / 100, SOURCE),
    )


BENCHMARK = Benchmark(
    name="coco_retrieval",
    title="COCO retrieval (Karpathy 5k)",
    source="Karpathy and Fei-Fei, CVPR 2015; Chen et al. 2015",
    licence="captions CC BY 4.0; photos: COCO val2014, Flickr licences",
    download=DOWNLOAD,
    load=load,
    retention=True,
    published=(
        *_published("CLIP ViT-B/32", 55.85, 74.82),
        *_published("CLIP ViT-B/16", 58.37, 76.82),
        *_published("CLIP ViT-L/14", 61.08, 79.18),
    ),
    task="Which photo belongs to a caption, and which caption to a photo?",
)
