"""Features by other libraries in files: their own numbers, the same bytes after any kill."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import transformers
from fake_bucket import bucket, served
from interop import libraries
from PIL import Image
from safetensors.torch import save_file
from tiny_runs import ROOT
from tiny_tars import write_photos

from negclip_jax.common.errors import InputError
from negclip_jax.data import feature_files
from negclip_jax.data.feature_files import ImageFeatures
from negclip_jax.interop import image_features, open_clip
from negclip_jax.pretrained import CLIP

__all__ = ["bucket", "served"]  # fixtures

VISION = {"width": 64, "layers": 2, "head_width": 32, "patch_size": 8, "image_size": 32}
TEXT = {"width": 32, "layers": 1, "heads": 2, "vocab_size": 600, "context_length": 16}


@pytest.fixture(autouse=True)
def keeps_logging(monkeypatch):
    monkeypatch.setattr("negclip_jax.runtime.console.set_up_logging", lambda: None)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Photos of several shapes and modes, in folders."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i, size in enumerate(
        [(40, 60), (61, 33), (32, 32), (5, 3), (200, 90), (33, 100), (90, 91)]
    ):
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
        path = folder / f"{'a' if i % 2 else 'b'}" / f"{i}.{'jpg' if i % 3 else 'png'}"
        path.parent.mkdir(exist_ok=True)
        (image.convert("L") if i == 2 else image).save(path)
    (folder / "notes.txt").touch()
    return folder


@pytest.fixture(scope="module")
def clip_folder(tiny_checkpoint, tmp_path_factory):
    """The tiny CLIP with the preprocessing that transformers reads."""
    folder = tmp_path_factory.mktemp("clip") / "clip"
    folder.mkdir()
    for file in tiny_checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPImageProcessorPil(**size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def naflex_folder(tmp_path_factory):
    """A SigLIP 2 that reads images of any shape as up to 16 patches."""
    folder = tmp_path_factory.mktemp("naflex") / "naflex"
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 2}
    config = transformers.Siglip2Config(
        text_config=tower | {"vocab_size": 99, "projection_size": 32},
        vision_config=tower | {"patch_size": 4, "num_patches": 16},
    )
    torch.manual_seed(0)
    transformers.Siglip2Model(config).save_pretrained(folder)
    made = transformers.Siglip2ImageProcessorPil(patch_size=4, max_num_patches=16)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["clip", "squash"])
def open_clip_folder(request, tmp_path_factory):
    """A folder of open_clip, of the usual preprocessing and of SigLIP's."""
    package = libraries.load("open_clip")
    model = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
    torch.manual_seed(0)
    made = package.CLIP(**model).eval()
    folder = tmp_path_factory.mktemp("open_clip")
    squash = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    described = {"model_cfg": model, "preprocess_cfg": squash if request.param == "squash" else {}}
    (folder / open_clip.CONFIG).write_text(json.dumps(described))
    state = {name: tensor.contiguous().clone() for name, tensor in made.state_dict().items()}
    save_file(state, folder / open_clip.WEIGHTS[0])
    return folder


def opened(images, names):
    return [Image.open(images / name).convert("RGB") for name in names]


def run(model, images, out, *flags: str, library="transformers") -> ImageFeatures:
    """The features that the command writes."""
    command = [f"--library={library}", f"--model={model}", f"--images={images}", f"--out={out}"]
    assert image_features.main([*command, *flags]) == 0
    return ImageFeatures(str(out))


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_transformers_own_features_and_ours(clip_folder, images, tmp_path, one_device):
    found = run(clip_folder, images, tmp_path / "out", "--batch=3")
    assert found.names == [f"a/{i}.{'jpg' if i % 3 else 'png'}" for i in (1, 3, 5)] + [
        f"b/{i}.{'jpg' if i % 3 else 'png'}" for i in (0, 2, 4, 6)
    ]
    assert found.model == str(clip_folder)
    model = transformers.CLIPModel.from_pretrained(clip_folder)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(clip_folder)
    batch = processor(images=opened(images, found.names), return_tensors="pt")
    with torch.no_grad():
        theirs = model.get_image_features(**batch)
    theirs = getattr(theirs, "pooler_output", theirs).numpy()
    np.testing.assert_allclose(found.features, theirs, atol=2e-5)
    ours = CLIP.from_pretrained(clip_folder, crop="transformers")
    pixels = ours.preprocess([images / name for name in found.names])
    np.testing.assert_allclose(found.features, ours.encode_image(pixels), atol=2e-5)


def test_naflex(naflex_folder, images, tmp_path):
    """Images of several shapes in one batch are what each is alone."""
    found = run(naflex_folder, images, tmp_path / "out", "--batch=4")
    model = transformers.Siglip2Model.from_pretrained(naflex_folder).eval()
    processor = transformers.Siglip2ImageProcessorPil.from_pretrained(naflex_folder)
    for row, image in zip(found.features, opened(images, found.names), strict=True):
        with torch.no_grad():
            theirs = model.get_image_features(**processor(images=[image], return_tensors="pt"))
        theirs = getattr(theirs, "pooler_output", theirs)[0].numpy()
        np.testing.assert_allclose(row, theirs, atol=2e-5)


def test_open_clips_own_features(open_clip_folder, images, tmp_path):
    package = libraries.load("open_clip")
    found = run(open_clip_folder, images, tmp_path / "out", "--batch=3", library="open_clip")
    model, preprocess = package.create_model_from_pretrained(f"local-dir:{open_clip_folder}")
    batch = torch.stack([preprocess(image) for image in opened(images, found.names)])
    with torch.no_grad():
        theirs = model.eval().encode_image(batch).numpy()
    np.testing.assert_allclose(found.features, theirs, atol=2e-5)
    assert found.model == str(open_clip_folder)
    ours = CLIP.from_pretrained(open_clip_folder)
    pixels = ours.preprocess([images / name for name in found.names])
    np.testing.assert_allclose(found.features, ours.encode_image(pixels), atol=5e-5)


def test_a_name_of_open_clip_with_a_file_of_weights(tmp_path, images, monkeypatch):
    package = libraries.load("open_clip")
    model = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "ViT-tiny.json").write_text(json.dumps(model))
    package.add_model_config(tmp_path / "configs")
    made = package.CLIP(**model)
    torch.save(made.state_dict(), tmp_path / "w.pt")
    weights = f"--pretrained={tmp_path / 'w.pt'}"
    found = run("ViT-tiny", images, tmp_path / "out", weights, library="open_clip")
    assert found.model == str(tmp_path / "w.pt") and found.features.shape == (7, 24)


def test_shards_are_the_files_of_one_run(clip_folder, images, tmp_path, capsys):
    flags = ("--batch=2", "--images-per-file=2", "--stored=float16")
    alone = run(clip_folder, images, tmp_path / "alone", *flags)
    assert len(files(tmp_path / "alone")) == 4 and alone.features.dtype == np.float32
    assert "train on them with --config.data.features=" in capsys.readouterr().out
    command = ["--library=transformers", f"--model={clip_folder}", f"--images={images}", *flags]
    out = tmp_path / "out"
    for index in (2, 0):
        assert image_features.main([*command, f"--out={out}", f"--shard={index}/3"]) == 0
    assert "1 files of other shards are not there yet" in capsys.readouterr().out
    with pytest.raises(InputError, match="1 of 4 files are not there yet"):
        ImageFeatures(str(out))
    assert image_features.main([*command, f"--out={out}", "--shard=1/3"]) == 0
    assert files(out) == files(tmp_path / "alone")
    assert ImageFeatures(str(out)).digest == alone.digest


def test_nothing_is_computed_again_and_a_damaged_file_is(
    clip_folder, images, tmp_path, monkeypatch
):
    flags = ("--batch=2", "--images-per-file=2")
    run(clip_folder, images, tmp_path / "out", *flags)
    expected = files(tmp_path / "out")
    calls, encoded = [], image_features._encoded
    monkeypatch.setattr(
        image_features, "_encoded", lambda *a: calls.append(len(a[1])) or encoded(*a)
    )
    run(clip_folder, images, tmp_path / "out", *flags)
    assert not calls
    file = sorted((tmp_path / "out").iterdir())[1]
    file.write_bytes(file.read_bytes()[:100])
    run(clip_folder, images, tmp_path / "out", *flags)
    assert calls == [1, 2] and files(tmp_path / "out") == expected  # a first one, and its batch


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(0, marks=pytest.mark.slow),
        *(pytest.param(n, marks=pytest.mark.long) for n in (1, 2)),
    ],
)
def test_killed_at_any_moment_and_continued(clip_folder, tmp_path, seed):
    """The bytes of an undisturbed run, whenever SIGKILL came."""
    rng = np.random.default_rng(seed)
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (250, 350, 3), np.uint8)).save(photos / f"{i}.jpg")
    flags = ["--library=transformers", f"--model={clip_folder}", f"--images={photos}"]
    flags += ["--batch=3", "--images-per-file=3", "--threads=1"]
    assert image_features.main([*flags, f"--out={tmp_path / 'alone'}"]) == 0
    out = tmp_path / "out"
    command = [sys.executable, "-m", "negclip_jax.interop.image_features", *flags, f"--out={out}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    while process.poll() is None and len(list(out.glob("features-*"))) < rng.integers(1, 15):
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.05))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = len(list(out.glob("features-*")))
    assert 0 < before <= 20
    assert image_features.main([*flags, f"--out={out}"]) == 0
    assert files(out) == files(tmp_path / "alone")


def test_unreadable_photos_are_named_and_nan(clip_folder, images, tmp_path, caplog, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, path in enumerate(sorted(images.rglob("*.jpg"))):
        (folder / f"{i}.jpg").write_bytes(path.read_bytes())
    (folder / "bad.jpg").write_bytes(b"no photo")
    Image.new("RGB", (5000, 4)).save(folder / "line.png")
    flags = ("--batch=2", "--images-per-file=2", "--max-bad-images=0.5")
    found = run(clip_folder, folder, tmp_path / "out", *flags)
    assert [n for n, bad in zip(found.names, found.unusable, strict=True) if bad] == [
        "bad.jpg",
        "line.png",
    ]
    assert "2 of 6 images cannot be read: " in caplog.text
    assert "line.png: 5000 x 4 pixels are a line" in caplog.text
    few = [f"--images={folder}", f"--out={tmp_path / 'out'}", "--batch=2", "--images-per-file=2"]
    command = ["--library=transformers", f"--model={clip_folder}", *few]
    assert image_features.main(command) == 1
    assert "--max-bad-images=0.01 allows fewer" in capsys.readouterr().err
    (folder / "bad.jpg").unlink()
    assert image_features.main([*command, "--max-bad-images=1"]) == 1
    assert "features with other settings (images: 6, digest" in capsys.readouterr().err


def test_images_of_pairs_in_tars_in_a_bucket(clip_folder, images, tmp_path, bucket):
    """The names are those of the pairs, and everything may lie in a bucket."""
    names = sorted(str(path.relative_to(images)) for path in images.rglob("*.jpg"))
    tar = write_photos(tmp_path / "a.tar", images, names)
    bucket.objects["b", "a.tar"] = ((tmp_path / "a.tar").read_bytes(), 1)
    every = run(clip_folder, f"wds:{tar}", tmp_path / "every")
    assert every.names == [f"a.tar/{name}" for name in names]
    lines = [json.dumps({"image": n, "caption": "x", "negated": "y"}) for n in names[:2]]
    (tmp_path / "pairs.jsonl").write_text("\n".join([*lines, lines[0]]))
    flags = (f"--pairs={tmp_path / 'pairs.jsonl'}", "--batch=1", "--images-per-file=1")
    found = run(clip_folder, "wds:gs://b/a.tar", "gs://b/features", *flags)
    assert found.names == names[:2]
    np.testing.assert_allclose(found.features, every.features[:2], atol=1e-5)
    assert bucket.names("gs://b/features") == [
        f"features-0000{i}-of-00002.parquet" for i in range(2)
    ]
    for name in names:
        bucket.objects["b", f"photos/{name}"] = ((images / name).read_bytes(), 1)
    bucket.objects["b", "photos/.hidden.jpg"] = (b"", 1)
    assert run(clip_folder, "gs://b/photos", tmp_path / "bucket").names == names


def test_lower_precision_is_near(clip_folder, images, tmp_path):
    exact = run(clip_folder, images, tmp_path / "exact").features
    lower = run(clip_folder, images, tmp_path / "lower", "--dtype=bfloat16").features
    near = (exact * lower).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(lower, axis=1)
    assert near.min() > 0.999 and not np.array_equal(exact, lower)


def test_what_cannot_be_used_is_told_in_one_line(
    clip_folder, open_clip_folder, images, tmp_path, capsys
):
    def said(library: str, model, *flags: str) -> str:
        command = [f"--library={library}", f"--model={model}", f"--images={images}", *flags]
        assert image_features.main([*command, f"--out={tmp_path / 'out'}"]) == 1
        found = capsys.readouterr().err
        assert "Traceback" not in found and found.count("error: ") == 1
        return found

    assert "give --pretrained, a file of weights or one of openai" in said("open_clip", "ViT-B-32")
    assert "open_clip has no model 'ViT-B32': ViT-B-32" in said("open_clip", "ViT-B32")
    assert "ViT-B-16-SigLIP" in said("timm", "vit_base_patch16_siglip_224.webli")
    assert "timm's towers are read through open_clip" in said("timm", "resnet50")
    assert "goes with a name of open_clip" in said("open_clip", open_clip_folder, "--pretrained=x")
    assert "transformers takes --model alone" in said("transformers", "x/y", "--pretrained=x")
    assert "transformers cannot load" in said("transformers", tmp_path)
    assert "--library=x is none of open_clip, transformers" in said("x", clip_folder)
    assert "write I/N" in said("transformers", clip_folder, "--shard=4/4")
    (tmp_path / "empty").mkdir()
    assert "holds no image" in said("transformers", clip_folder, f"--images={tmp_path / 'empty'}")
    vision = transformers.CLIPModel.from_pretrained(clip_folder)
    transformers.CLIPVisionModelWithProjection.from_pretrained(clip_folder).save_pretrained(
        tmp_path / "vision"
    )
    transformers.CLIPImageProcessorPil().save_pretrained(tmp_path / "vision")
    assert "no text is compared with" in said("transformers", tmp_path / "vision")
    state = {k: v for k, v in vision.state_dict().items() if k != "visual_projection.weight"}
    vision.save_pretrained(tmp_path / "less", state_dict=state)
    transformers.CLIPImageProcessorPil().save_pretrained(tmp_path / "less")
    assert "lacks 1 tensors" in said("transformers", tmp_path / "less")
    run(clip_folder, images, tmp_path / "out")
    assert "stored: float32, now float16" in said("transformers", clip_folder, "--stored=float16")


def test_the_weights_activation_is_not_replaced(tmp_path, images, capsys, monkeypatch):
    """open_clip warns and goes on: each feature would be a little wrong."""
    import warnings

    package = libraries.load("open_clip")

    def loads(*_, **__):
        warnings.warn("QuickGELU mismatch between final model config and tag", stacklevel=1)

    monkeypatch.setattr(package, "create_model_from_pretrained", loads)
    flags = ["--library=open_clip", "--model=ViT-B-32", "--pretrained=openai"]
    assert image_features.main([*flags, f"--images={images}", f"--out={tmp_path / 'o'}"]) == 1
    assert "open_clip cannot load ViT-B-32: UserWarning: QuickGELU" in capsys.readouterr().err


def test_no_jax_is_imported_and_a_missing_torch_is_said(clip_folder, images, tmp_path):
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from negclip_jax.interop import image_features\n"
        "status = image_features.main(sys.argv[1:])\n"
        "assert not {'jax', 'flax', 'tensorflow'} & sys.modules.keys()\n"
        "sys.exit(status)"
    )
    flags = ["--library=transformers", f"--model={clip_folder}", f"--images={images}"]
    command = [sys.executable, "-c", program, *flags, f"--out={tmp_path / 'out'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 1 and "pip install -e '.[features]'" in done.stderr, done.stderr
    assert feature_files.said_by  # of the files there is nothing
    assert not (tmp_path / "out").exists()
