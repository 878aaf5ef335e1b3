"""Zero-shot classification on ImageNet, CIFAR-10 and CIFAR-100, with one prompt and with many.

Source: Radford et al., "Learning Transferable Visual Models" (ICML 2021, arXiv 2103.00020). Class
names and templates are OpenAI's (`evals/prompts`, MIT). Photos, whichever is there first: a folder
of class folders, or a data set prepared with tensorflow-datasets (read without TensorFlow).

- ImageNet (Russakovsky et al., 2015; research only, image-net.org): `imagenet/val/n01440764/*.JPEG`
  or tfds `imagenet2012/validation`. Classes are synsets, since names repeat ("missile").
- CIFAR-10, CIFAR-100 (Krizhevsky, 2009; www.cs.toronto.edu/~kriz/cifar.html): `cifar10/test/cat/*`
  or tfds `cifar10/test`; the same for `cifar100`, fine labels.

Protocol (CLIP's notebook, CLIP_benchmark): top-1 and top-5 by cosine with the class embedding.
`top1_single` uses the one prompt "a photo of a {}.", `top1_ensemble` all of OpenAI's templates (80
for ImageNet, 18 for CIFAR). Their ImageNet values differ by about a point, and papers often do not
say which they used: NegationCLIP's 62.02 for CLIP fits a single prompt.
"""

import functools

from evals.benchmark import Benchmark, Problem, Published
from evals.classification import classification_problem
from evals.images import DataRoots
from evals.labelled import SINGLE, find_labelled, read_prompts

PAPER = "Park et al. 2025 (arXiv 2501.10913), prompt not stated"
BENCH = "CLIP_benchmark, 80 templates"


def load(
    roots: DataRoots, prompts: str, folders: tuple[str, ...], tfds: str, download: str
) -> Problem:
    """Reads the photos of one data set. Raises InputError."""
    known = read_prompts(prompts)
    where, items = find_labelled(roots, folders, tfds, known.keys, download)
    sets = {"single": [SINGLE], "ensemble": known.templates}
    return classification_problem(roots, where, items, known.classes, sets)


_SOURCE = "Radford et al., ICML 2021 (prompts)"
_TASK = "Which class does the photo show?"


def _cifar(name: str, title: str, published: tuple[Published, ...]) -> Benchmark:
    download = "www.cs.toronto.edu/~kriz/cifar.html"
    return Benchmark(
        name=name,
        title=title,
        source=f"Krizhevsky 2009; {_SOURCE}",
        licence="none stated; prompts MIT",
        download=download,
        load=functools.partial(
            load,
            prompts=name,
            folders=(f"{name}/test",),
            tfds=f"{name}/test",
            download=download,
        ),
        published=published,
        retention=True,
        task=_TASK,
    )


BENCHMARK = IMAGENET = Benchmark(
    name="imagenet",
    title="ImageNet zero-shot",
    source=f"Russakovsky et al., IJCV 2015; {_SOURCE}",
    licence="research only; prompts MIT",
    download="image-net.org",
    load=functools.partial(
        load,
        prompts="imagenet",
        folders=("imagenet/val", "ILSVRC2012/val", "imagenet/validation"),
        tfds="imagenet2012/validation",
        download="image-net.org",
    ),
    retention=True,
    published=(
        Published("CLIP ViT-B/32", "top1_ensemble", 0.6333, BENCH),
        Published("CLIP ViT-B/16", "top1_ensemble", 0.6835, BENCH),
        Published("CLIP ViT-L/14", "top1_ensemble", 0.7549, BENCH),
        Published("CLIP ViT-B/32", "top1_single", 0.6202, PAPER),
        Published("CLIP ViT-L/14", "top1_single", 0.7344, PAPER),
        Published("NegationCLIP ViT-B/32", "top1_single", 0.6097, PAPER),
        Published("NegationCLIP ViT-L/14", "top1_single", 0.7391, PAPER),
        Published("CoN-CLIP ViT-B/32", "top1_single", 0.6308, PAPER),
    ),
    task=_TASK,
)
CIFAR10 = _cifar(
    "cifar10",
    "CIFAR-10 zero-shot",
    (Published("CLIP ViT-B/32", "top1_ensemble", 0.898, "CLIP_benchmark, open_clip"),),
)
CIFAR100 = _cifar(
    "cifar100",
    "CIFAR-100 zero-shot",
    (Published("CLIP ViT-B/32", "top1_ensemble", 0.642, "CLIP_benchmark, open_clip"),),
)
