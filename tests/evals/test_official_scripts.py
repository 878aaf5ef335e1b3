"""Item by item the same as the official scripts, run in PyTorch on an export of the same weights.

Real photos, real captions, CLIP's vocabulary, random weights. The scripts' arithmetic is written
once more here: OpenAI's preprocessing with Pillow, features by `transformers`, loops over the
published files. Where two options are closer than float32 can tell, either answer is accepted.
"""

import ast
import csv
import json
import types

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from evals import models, registry
from evals.images import DataRoots
from negclip_jax.embeddings.encoder import Encoder
from negclip_jax.interop import huggingface
from negclip_jax.models import clip

torch = pytest.importorskip("torch")
SIZE, CLOSE = 32, 2e-5
RETRIEVAL = "negbench_retrieval_negated"
MCQ_FILE = "COCO_val_mcq_llama3.1_rephrased.csv"
RETRIEVAL_FILE = "COCO_val_negated_retrieval_llama3.1_rephrased_affneg_true.csv"
KEPT = {MCQ_FILE: 100, RETRIEVAL_FILE: 60}  # rows
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def checkpoint(shared_data, tmp_path_factory):
    config = clip.CLIPConfig(
        text=clip.TextConfig(
            width=32,
            layers=2,
            heads=2,
            mlp_width=64,
            vocab_size=49_408,
            context_length=77,
            eos_token_id=49_407,
        ),
        vision=clip.VisionConfig(
            width=48, layers=2, heads=3, mlp_width=80, image_size=SIZE, patch_size=8
        ),
        projection_dim=40,
    )
    path = tmp_path_factory.mktemp("official") / "model"
    _, params = clip.split(clip.CLIP(config, rngs=nnx.Rngs(0)))
    huggingface.save(path, config, params, tokenizer=shared_data / "clip_tokenizer")
    return path


def preprocess(image: Image.Image) -> "torch.Tensor":
    """OpenAI's `_transform`: Resize(bicubic), CenterCrop, RGB, ToTensor, Normalize."""
    width, height = image.size
    short = min(width, height)
    size = int(SIZE * width / short), int(SIZE * height / short)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (round((edge - SIZE) / 2.0) for edge in image.size)
    image = image.crop((left, top, left + SIZE, top + SIZE)).convert("RGB")
    pixels = torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@pytest.fixture(scope="module")
def pytorch(checkpoint, shared_data):
    """`image(path, box)` and `text(string)`: unit features by transformers, each computed once."""
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(checkpoint).eval()
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint)
    known: dict = {}

    def unit(key, inputs, tower, projection):
        if key not in known:
            with torch.inference_mode():
                features = projection(tower(**inputs()).pooler_output)
            known[key] = (features / features.norm(dim=-1, keepdim=True))[0]
        return known[key]

    def image(path, box=None):
        def inputs():
            with Image.open(shared_data / "coco" / "photos" / path) as photo:
                if box is not None:
                    photo = photo.crop((box[0], box[1], box[0] + box[2], box[1] + box[3]))
                return {"pixel_values": preprocess(photo)[None]}

        return unit((path, box), inputs, model.vision_model, model.visual_projection)

    def text(string):
        def inputs():
            return tokenizer([string], truncation=True, max_length=77, return_tensors="pt")

        return unit(string, inputs, model.text_model, model.text_projection)

    return types.SimpleNamespace(image=image, text=text)


@pytest.fixture(scope="module")
def slices(shared_data, tmp_path_factory):
    """The slices, the two long ones shortened."""
    folder = tmp_path_factory.mktemp("slices")
    for file in (shared_data / "benchmarks" / "slices").iterdir():
        lines = file.read_text().splitlines(keepends=True)
        kept = KEPT.get(file.name, len(lines))
        (folder / file.name).write_text("".join(lines[: kept + 1]))
    return folder


@pytest.fixture(scope="module")
def evaluated(checkpoint, slices, shared_data, tmp_path_factory):
    """Predictions of the harness on the slices: name to {item: row}."""
    names = ("negrefcocog", "valse_pieces", "negbench_mcq", "sugarcrepe", RETRIEVAL)
    roots = DataRoots((slices,), (shared_data / "coco" / "photos",))
    problems = {name: registry.get(name).load(roots) for name in names}
    images = [ref for problem in problems.values() for ref in problem.images]
    texts = [text for problem in problems.values() for text in problem.texts]
    with pytest.MonkeyPatch.context() as patch:
        from tiny_runs import use_one_device

        use_one_device(patch)
        model = models.load(str(checkpoint))
        encoder = Encoder(model, images, texts, roots, cache=tmp_path_factory.mktemp("cache"))
        scored = {
            name: problem.score(*encoder.features(problem.images, problem.texts))
            for name, problem in problems.items()
        }
        encoder.close()
    tables = {}
    for name, result in scored.items():
        columns = result.predictions
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        tables[name] = {row["item"]: row for row in rows}
    return tables


def check(row: dict, similarities: list, right: bool) -> None:
    """One item: the same scores, and the same verdict unless two scores are too close to call."""
    theirs = np.array([float(s) for s in similarities])
    np.testing.assert_allclose(row["scores"], theirs, atol=CLOSE)
    answer = theirs[row["answers"][0]]
    margin = np.abs(np.delete(theirs, row["answers"][0]) - answer).min()
    assert row["right_official"] == float(right) or margin < 2 * CLOSE


def test_negrefcocog(evaluated, pytorch, slices):
    for i, item in enumerate(json.loads((slices / "NegRefCOCOg.json").read_text())):
        phrase = pytorch.text(item["phrase"])
        boxes = item["bbox_list"]
        similarities = [(pytorch.image(item["image"], tuple(b)) @ phrase).item() for b in boxes]
        right = boxes[np.argmax(similarities)] == item["ref_bbox"]
        check(evaluated["negrefcocog"][str(i)], similarities, right)


def test_negbench_mcq(evaluated, pytorch, slices):
    path = slices / MCQ_FILE
    for i, row in enumerate(csv.DictReader(path.open(newline=""))):
        texts = torch.stack([pytorch.text(row[f"caption_{j}"]) for j in range(4)])
        logits = pytorch.image(row["image_path"]) @ texts.T
        right = logits.argmax().item() == int(row["correct_answer"])
        check(evaluated["negbench_mcq"][str(i)], logits.tolist(), right)
    assert len(evaluated["negbench_mcq"]) == i + 1 == KEPT[MCQ_FILE]


@pytest.mark.parametrize("piece", ["relations", "foil-it", "plurals", "coreference-standard"])
def test_valse(evaluated, pytorch, slices, piece):
    content = json.loads((slices / f"valse_{piece}.json").read_text())
    for key, item in content.items():
        image = pytorch.image(item["image_file"])
        caption, foil = (image @ pytorch.text(item[name]) for name in ("caption", "foil"))
        row = evaluated["valse_pieces"][f"{piece}:{key}"]
        check(row, [caption, foil], bool(caption > foil))


@pytest.mark.parametrize("category", ["add_att", "swap_att", "swap_obj", "replace_rel"])
def test_sugarcrepe(evaluated, pytorch, slices, category):
    content = json.loads((slices / f"sugarcrepe_{category}.json").read_text())
    for key, item in content.items():
        image = pytorch.image(item["filename"])
        positive, negative = (
            image @ pytorch.text(item[n]) for n in ("caption", "negative_caption")
        )
        row = evaluated["sugarcrepe"][f"{category}:{key}"]
        check(row, [positive, negative], bool(positive > negative))


def test_negbench_retrieval(evaluated, pytorch, slices):
    path = slices / RETRIEVAL_FILE
    rows = list(csv.DictReader(path.open(newline="")))
    images = torch.stack([pytorch.image(row["filepath"]) for row in rows])
    close = 0
    for i, row in enumerate(rows):
        for j, caption in enumerate(ast.literal_eval(row["captions"])):
            scores = images @ pytorch.text(caption)
            order = torch.argsort(scores, descending=True).tolist()
            ours = evaluated[RETRIEVAL][f"{row['image_id']}#{j}"]
            assert ours["scores"][0] == pytest.approx(scores[i].item(), abs=CLOSE)
            near = (scores - scores[i]).abs() < 2 * CLOSE
            close += int(near.sum() > 1)
            assert abs(ours["rank"] - 1 - order.index(i)) < near.sum()
    assert len(evaluated[RETRIEVAL]) == 300 and close < 100  # most ranks were compared exactly


def test_both_answers_occur(evaluated):
    """Random weights are right about as often as not, so that agreement says something."""
    for name, rows in evaluated.items():
        first = next(iter(rows.values()))
        if len(rows) > 50 and "right_official" in first and "rank" not in first:
            share = np.mean([row["right_official"] for row in rows.values()])
            assert 0.1 < share < 0.9, name
