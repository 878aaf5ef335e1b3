"""Eight virtual CPU devices, set before JAX is imported, and tiny models and data for all tests.

`NEGCLIP_TEST_PLATFORM=cuda` (or `tpu`) runs tests on an accelerator instead: those of models and of
training on one device are meant to pass there too.
"""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = os.environ.get("NEGCLIP_TEST_PLATFORM", "cpu")
if os.environ["JAX_PLATFORMS"] == "cpu":
    # Compiling dominates these tests. The passes over the program stay as they are; its code is
    # generated in a fifth of the time without MLIR's emitters of fusions, at level 0 of LLVM, as
    # one module instead of 32 (workers use the other cores). Few numbers change, by rounding.
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
        + " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
# Workers, the processes that tests start and later runs share what was compiled before, the small
# programs too: reading hundreds of them takes a third less than compiling them again.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
    "NEGCLIP_TEST_CACHE", os.path.join(tempfile.gettempdir(), "negclip_jax_test_cache")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Threads of PyTorch and BLAS that wait for each other keep the cores of other workers busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import dataclasses
import gc
import json
import logging
import pathlib
import sys
import types

import jax
import numpy as np
import pytest
from absl import flags
from flax import nnx
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # for the few helper modules that tests share

import shapes  # noqa: E402

# Here alone: outside of tests the annotations are words, and cost nothing in a call.
shapes.install()

# What launch.py sets up: our messages, but of the libraries below us only warnings.
logging.getLogger().setLevel(logging.INFO)
for _library in ("absl", "jax", "orbax", "grain"):
    logging.getLogger(_library).setLevel(logging.WARNING)

# Grain's worker processes read absl flags, which only app.run parses.
flags.FLAGS.mark_as_parsed()


# A worker takes whole files (`--dist=loadfile`), so that their fixtures are made once; those that
# take longest come first, so that no worker is left with one of them at the end.
_LONGEST_FILES = (
    "training/test_failing_processes.py",
    "test_killed_anywhere.py",
    "training/test_many_processes.py",
    "training/test_bucket_run.py",
    "training/test_loop.py",
    "training/test_resume.py",
    "interop/test_configurations.py",
    "interop/test_families.py",
    "training/test_objectives.py",
    "data_gen/test_generate_on_ray.py",
    "evals/text_to_image/test_command.py",
    "test_long_life.py",
    "test_own_folder.py",
    "evals/test_outside_features_end_to_end.py",
    "bench/test_paper.py",
    "bench/test_finetune.py",
    "data_gen/test_embedded.py",
    "training/test_image_sources.py",
    "training/test_sources.py",
    "training/test_stand_ins.py",
    "training/test_base_text.py",
    "training/test_same_result.py",
    "training/test_step_microbatches.py",
    "training/test_adapters.py",
    "training/test_siglip_run.py",
    "training/test_storage_faults.py",
    "training/test_sharded_step.py",
    "interop/test_image_features.py",
    "data_gen/test_generate.py",
    "data_gen/test_shared_requests.py",
)


@pytest.fixture(autouse=True)
def _log_as_before():
    """A command that a test runs in this process sets up logging; the next test has its own."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.setLevel(level)
    for handler in root.handlers[:]:
        if handler not in before and type(handler).__module__ != "_pytest.logging":
            root.removeHandler(handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What importing makes stays: searching it for garbage took half the time of collection."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {ROOT / "tests" / file: i for i, file in enumerate(_LONGEST_FILES)}
    assert all(file.exists() for file in rank), "_LONGEST_FILES has one that is gone"
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Real photos, captions and vocabulary, which are not part of the repository."""
    path = pathlib.Path(os.environ.get("NEGCLIP_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real photos and captions are not at {path} (set NEGCLIP_TEST_DATA)")
    return path


@pytest.fixture(scope="session")
def forked(tmp_path_factory):
    """Starts processes that have imported what training needs: the nursery of `processes.py`."""
    from processes import nursery

    with nursery(tmp_path_factory.mktemp("logs")) as opened:
        yield opened


@pytest.fixture(scope="session")
def tiny_config():
    """A CLIP of two blocks and width 32 with every size different from every other."""
    from negclip_jax.models import clip

    return clip.CLIPConfig(
        text=clip.TextConfig(
            width=32,
            layers=2,
            heads=2,
            mlp_width=64,
            vocab_size=600,
            context_length=24,
            eos_token_id=599,
        ),
        vision=clip.VisionConfig(
            width=48, layers=2, heads=3, mlp_width=80, image_size=32, patch_size=8
        ),
        projection_dim=40,
    )


@pytest.fixture(scope="session")
def tiny_vocabulary(tmp_path_factory) -> pathlib.Path:
    """A byte-level vocabulary without merges in the files of a real one."""
    from negclip_jax.data.tokenizer import byte_symbols

    path = tmp_path_factory.mktemp("vocabulary")
    symbols = list(byte_symbols().values())
    vocab = [*symbols, *(s + "</w>" for s in symbols)]
    vocab += [f"unused{i}" for i in range(600 - len(vocab) - 2)]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_config, tiny_vocabulary, tmp_path_factory) -> pathlib.Path:
    """A Hugging Face directory with random weights of `tiny_config`."""
    from negclip_jax.interop import huggingface
    from negclip_jax.models import clip

    path = tmp_path_factory.mktemp("checkpoint") / "tiny"
    _, params = clip.split(clip.CLIP(tiny_config, rngs=nnx.Rngs(0)))
    huggingface.save(path, tiny_config, params, tokenizer=tiny_vocabulary)
    return path


@pytest.fixture(scope="session")
def short_run(tiny_checkpoint, tiny_pairs) -> dict:
    """Settings of 20 steps on the tiny data, as {"section.key": value}."""
    return {
        "model.checkpoint": str(tiny_checkpoint),
        "data.pairs": str(tiny_pairs / "pairs.json"),
        "data.images": str(tiny_pairs / "images"),
        "data.threads": 2,
        "train.batch_size": 16,
        "train.total": "20 steps",
        "optim.lr": 1e-3,
        "eval.every": "10 steps",
        "checkpoint.every": "10 steps",
        "log.every": "5 steps",
        "log.tensorboard": False,
        "runtime.compilation_cache": "",  # the one of all tests stays in use
    }


@pytest.fixture(scope="session")
def make_config(short_run):
    """Function of {"section.key": value} to the configuration of a `short_run` with changes."""
    from traced_once import of_equal_settings

    from configs import common
    from negclip_jax.training import setup

    # For good, like JAX's own caches: a second run of the same settings takes a third of the time.
    setup.make_train_step = of_equal_settings(setup.make_train_step)

    def make(changes: dict | None = None):
        config = common.base()
        config.update_from_flattened_dict(short_run | (changes or {}))
        return config

    return make


@pytest.fixture(scope="session")
def finished_run(make_config, tmp_path_factory) -> types.SimpleNamespace:
    """20 uninterrupted steps on one device that use as much as possible: read, do not write.

    `workdir`, `state` (on the host), `changes` to `short_run`.
    """
    from tiny_runs import EVALUATORS, use_one_device

    from negclip_jax.training.loop import train

    changes = {
        "seed": 4,  # its validation loss is smallest before the end
        "train.ema_decay": 0.8,
        "data.caption_mode": "mix",
        "data.foils": 1,
        "optim.lr": 1e-2,
        "optim.freeze": ("vision/.*", "visual_projection", "text/blocks/0/.*"),
        "eval.every": "5 steps",
        "eval.batch_size": 8,
        "log.tensorboard": True,
    }
    workdir = tmp_path_factory.mktemp("finished") / "run"

    with pytest.MonkeyPatch.context() as patch:
        use_one_device(patch)
        state = train(make_config(changes), str(workdir), EVALUATORS)
    return types.SimpleNamespace(workdir=workdir, state=jax.device_get(state), changes=changes)


@pytest.fixture
def one_device(monkeypatch):
    """Training uses one of the eight devices: a quarter of the time, and what most people have."""
    from tiny_runs import use_one_device

    use_one_device(monkeypatch)


@pytest.fixture
def not_compiled(monkeypatch):
    """`prepare` leaves the training step uncompiled: most of its time, where no step is taken."""
    from negclip_jax.training.step import CompiledStep

    monkeypatch.setattr(CompiledStep, "compiled_for", lambda *arguments: None)


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory) -> pathlib.Path:
    """A folder with 40 images, two captions each, in the layout of NegationCLIP's released file.

    `images/*.png` (half of them not square) and `pairs.json`.
    """
    path = tmp_path_factory.mktemp("pairs")
    (path / "images").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(40):
        size = (40, 32) if i % 2 else (36, 36)
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(path / "images" / f"{i:03d}.png")
        images.append({"id": i, "file_name": f"{i:03d}.png"})
        for j in range(2):
            annotations.append(
                {
                    "id": 2 * i + j,
                    "image_id": i,
                    "caption": f"thing {i}",
                    "updated_caption": f"{i} no {j}",
                    "foils": [f"no {i}"] if j else [],
                }
            )
    content = {"images": images, "annotations": annotations}
    (path / "pairs.json").write_text(json.dumps(content))
    return path


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint):
    """The tiny checkpoint as evaluations load it."""
    from evals import models

    return models.load(f"tiny={tiny_checkpoint}")


@pytest.fixture(scope="session")
def other_model(tiny_model):
    """The same with other weights in both towers."""
    rng = np.random.default_rng(5)
    params = dict(tiny_model.params)
    for name in ("text_projection", "visual_projection"):
        params[name] = rng.standard_normal(params[name].shape).astype(np.float32)
    return dataclasses.replace(tiny_model, name="other", params=params)


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> types.SimpleNamespace:
    """`data`: a folder with `photos/0.png` to `photos/11.png`; `refs`: they, and one cropped."""
    from negclip_jax.data.images import ImageRef

    folder = tmp_path_factory.mktemp("photos")
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 256, (40, 36 + i, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{i}.png")
    refs = [ImageRef(f"{i}.png") for i in range(12)]
    return types.SimpleNamespace(data=folder, refs=[*refs, ImageRef("3.png", (2.0, 3.0, 20, 30))])


@pytest.fixture
def one_device_mesh(monkeypatch):
    """Encoders use one of the eight devices: less to compile."""
    from tiny_runs import use_one_device

    use_one_device(monkeypatch)
