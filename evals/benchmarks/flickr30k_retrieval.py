"""Flickr30k retrieval on Karpathy's test split, 1,000 photos with five captions each, both ways.

Source: Young et al., "From image descriptions to visual denotations" (TACL 2014); split by Karpathy
and Fei-Fei (CVPR 2015). File, whichever is there first: `dataset_flickr30k.json`
(caption_datasets.zip, cs.stanford.edu/people/karpathy/deepimagesent), `flickr30k_test.json` (BLIP
and ARO), `flickr30k_test_karpathy.txt` (CLIP_benchmark). Photos: on request from
shannon.cs.illinois.edu/DenotationGraph; for research only.

Protocol: as for COCO, raw captions without a prompt and recall@k > 0.
"""

from evals.benchmark import Benchmark, Problem, Published
from evals.captions import read_captions
from evals.images import DataRoots
from evals.retrieval import retrieval_problem

FILES = ("dataset_flickr30k.json", "flickr30k_test.json", "flickr30k_test_karpathy.txt")
DOWNLOAD = "cs.stanford.edu/people/karpathy/deepimagesent (caption_datasets.zip)"
SOURCE = "CLIP_benchmark"


def load(roots: DataRoots) -> Problem:
    """Reads the test split. Raises InputError."""
    file = roots.find(*FILES, download=DOWNLOAD)
    return retrieval_problem(roots, file, read_captions(file, "test"))


BENCHMARK = Benchmark(
    name="flickr30k_retrieval",
    title="Flickr30k retrieval (1k)",
    source="Young et al., TACL 2014; split by Karpathy and Fei-Fei, CVPR 2015",
    licence="captions and photos for research only (Flickr's terms)",
    download=DOWNLOAD,
    load=load,
    retention=True,
    published=(
        Published("CLIP ViT-B/32", "t2i_recall@5", 0.8338, SOURCE),
        Published("CLIP ViT-B/32", "i2t_recall@5", 0.9490, SOURCE),
        Published("CLIP ViT-L/14", "t2i_recall@5", 0.8716, SOURCE),
        Published("CLIP ViT-L/14", "i2t_recall@5", 0.9740, SOURCE),
    ),
    task="Which photo belongs to a caption, and which caption to a photo?",
)
