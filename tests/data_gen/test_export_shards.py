"""Pairs and photos in shards: what others read, what training reads, and exports cut short."""

import hashlib
import io
import itertools
import json
import os
import shlex
import shutil
import sys
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from etils import epath
from fault_server import POOL, FaultServer, arguments, world
from PIL import Image
from tiny_runs import assert_equal

from data_gen import export as module
from data_gen.cli import main
from data_gen.export import export, export_shards
from negclip_jax.common.errors import InputError
from negclip_jax.data.images import ImageDirectory, Preprocessor
from negclip_jax.data.pairs import read_pairs
from negclip_jax.data.sources import open_images
from negclip_jax.data.tokenizer import load_tokenizer
from negclip_jax.training import inputs

FORMS = {"wds": "tar", "parquet": "parquet"}
PHOTOS = 14
SIZE = {"wds": 40_000, "parquet": 9_000}  # bytes of a shard: some photos


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run, its photos beside it, and its export as files."""
    folder = tmp_path_factory.mktemp("world")
    shows = world(folder / "w", PHOTOS)
    with FaultServer(shows, POOL) as server:
        assert main(arguments(folder / "w", folder / "run", server)) == 0
    export(folder / "run", folder / "files")
    return folder / "run"


def spec_of(form: str, folder: Path) -> str:
    return f"{form}:{folder}/pairs-{{000000..}}.{FORMS[form]}"


def written(folder: Path) -> dict[str, bytes]:
    """Content of what is there but the note of progress, which knows the photos' times."""
    return {
        p.name: p.read_bytes()
        for p in folder.iterdir()
        if p.name not in ("export.json", ".export.lock")
    }


@pytest.fixture(params=FORMS)
def form(request) -> str:
    return request.param


@pytest.fixture
def whole(run, form, tmp_path) -> Path:
    """The folder of an export that nothing disturbed."""
    done = export_shards(run, spec_of(form, tmp_path / "whole"), size=SIZE[form])
    assert done.training["pairs"].startswith(f"{form}:{tmp_path}/whole/pairs-{{000000..0000")
    assert len(list((tmp_path / "whole").glob("pairs-*"))) > 2
    return tmp_path / "whole"


def test_webdatasets_own_reader_finds_everything(run, tmp_path):
    done = export_shards(run, spec_of("wds", tmp_path), size=SIZE["wds"])
    spec = done.training["pairs"].removeprefix("wds:")
    samples = list(webdataset.WebDataset(spec, shardshuffle=False).decode("pil"))
    pairs = read_pairs(run.parent / "files" / "pairs.json")
    names = list(dict.fromkeys(pair.image for pair in pairs))
    assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(len(names))]
    statements = pq.read_table(run.parent / "files" / "statements.parquet").to_pylist()
    for name, sample in zip(names, samples, strict=True):
        own, about = [pair for pair in pairs if pair.image == name], sample["json"]
        photo = (run.parent / "w" / "photos" / name).read_bytes()
        assert sample["jpg"].tobytes() == Image.open(io.BytesIO(photo)).convert("RGB").tobytes()
        assert sample["txt"] == own[0].caption == about["caption"]
        assert (about["negated"], about["foils"]) == (own[0].negated, list(own[0].foils))
        listed = [
            (p["caption"], p["negated"], tuple(p["foils"]), p["object"]) for p in about["pairs"]
        ]
        assert listed == [(p.caption, p.negated, p.foils, p.object) for p in own]
        said = [(s["text"], s["truth"]) for s in statements if s["image"] == name]
        assert [(s["text"], s["truth"]) for s in about["statements"]] == said != []


def loader_of(keys: dict, vocabulary: Path, kept: Path):
    """Training and validation loaders of some keys of the section `data`."""
    given = {"images": None, "statements": None, "fields": "", "sources": "", "workers": 0}
    given |= {"caption_mode": "mix", "original_fraction": 0.5, "foils": 1, "text_nouns": None}
    given |= {"true_texts": 1, "false_texts": 1, "truncated": "keep", "validation_fraction": 0.2}
    given |= {"split_by": "image", "split_seed": 42, "max_bad_images": 0.0, "packing": True}
    given |= {"threads": 2, "kept_pixels_mib": 0.0, "seed": 3, "keeps_originals": False}
    given |= {"repeats_first": False} | keys
    return inputs.loaders(
        **given,
        examples_dir=epath.Path(kept),
        batch_sizes=(8, 4),
        shards=1,
        tokenizer=load_tokenizer(vocabulary, context_length=24),
        preprocess=Preprocessor(size=32, resize=32),
    )


def test_training_reads_the_pairs_and_batches_of_the_files(run, form, tmp_path, tiny_vocabulary):
    """Also those of the keys that the command says."""
    files = run.parent / "files"
    done = export_shards(run, spec_of(form, tmp_path), size=SIZE[form])
    photos = open_images(done.training["images"])

    def facts(path: str, images, name) -> list:
        return [
            (images.read(name(pair)), pair.caption, pair.negated, pair.foils, pair.image_id,
             pair.object, pair.provenance)
            for pair in read_pairs(path)
        ]  # fmt: skip

    original = facts(
        str(files / "pairs.json"), ImageDirectory(run.parent / "w" / "photos"), lambda p: p.image
    )
    assert facts(done.training["pairs"], photos, lambda p: p.image) == original
    assert len(original) == done.pairs > PHOTOS
    both = [
        loader_of(
            {"pairs": str(files / "pairs.json"), "images": str(run.parent / "w" / "photos"),
             "statements": str(files / "statements.parquet")},
            tiny_vocabulary, tmp_path / "kept",
        ),
        loader_of(done.training, tiny_vocabulary, tmp_path / "kept"),
    ]  # fmt: skip
    for of_files, of_shards in zip(*((train, *held.values()) for train, held in both), strict=True):
        for ours, theirs in zip(of_shards.batches(0, 7), of_files.batches(0, 7), strict=True):
            assert_equal(ours, theirs)


def test_fields_that_a_user_names_count_for_the_first_pair(run, form, tmp_path):
    done = export_shards(run, spec_of(form, tmp_path), size=SIZE[form])
    field = "json.negated" if form == "wds" else "negated"
    pairs = read_pairs(done.training["pairs"], fields=f"caption={field}", require_negated=False)
    assert len(pairs) == PHOTOS == len({pair.image for pair in pairs})


@pytest.mark.parametrize(
    "reads",
    [0, 6, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 9, 12))],
)
def test_what_was_interrupted_goes_on(run, form, whole, tmp_path, reads, monkeypatch):
    """And gives the bytes of an export that was not; shards that were whole are not written."""
    left = [reads]
    read = ImageDirectory.read

    def interrupted(self, name: str) -> bytes:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return read(self, name)

    to = tmp_path / "again"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ImageDirectory, "read", interrupted)
        export_shards(run, spec_of(form, to), size=SIZE[form])
    shards = {path.name: path.read_bytes() for path in to.glob("pairs-*")}
    assert shards.items() <= written(whole).items() and not (to / "statements.parquet").exists()
    before = {name: os.stat(to / name).st_ino for name in shards}
    export_shards(run, spec_of(form, to), size=SIZE[form])
    assert written(to) == written(whole)
    assert {name: os.stat(to / name).st_ino for name in before} == before


def test_killed_exports_leave_whole_shards(run, form, whole, forked, tmp_path):
    """`kill -9` where a shard is nearly written, and where it is there but not noted."""
    to = tmp_path / "again"
    for place in ("os.fsync", "negclip_jax.common.storage.write_whole"):
        command = [
            "export",
            f"--out={run}",
            f"--to={spec_of(form, to)}",
            f"--shard-mb={SIZE[form] / 1e6}",
        ]
        events = [{"killed_at_second_call": place}]
        (killed,) = forked.finish([["-m", "data_gen", *command]], events=events)
        assert killed.status == -9, killed.output
        for shard in to.glob("pairs-*"):
            assert shard.read_bytes() == written(whole)[shard.name]
    assert main(command) == 0
    assert written(to) == written(whole)


def test_only_what_would_differ_is_written_again(run, form, whole, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(run.parent / "w" / "photos", photos)
    to = tmp_path / "again"
    shutil.copytree(whole, to)
    export_shards(
        run, spec_of(form, to), str(photos), size=SIZE[form]
    )  # copies have another identity
    first, *others = sorted(path.name for path in to.glob("pairs-*"))
    inodes = {name: os.stat(to / name).st_ino for name in (first, *others)}
    names = sorted(os.listdir(photos))
    (photos / names[-1]).write_bytes((photos / names[0]).read_bytes())
    export_shards(run, spec_of(form, to), str(photos), size=SIZE[form])
    assert os.stat(to / first).st_ino == inodes[first]
    assert os.stat(to / others[-1]).st_ino != inodes[others[-1]]
    (to / first).write_bytes((to / first).read_bytes()[:-1] + b"x")  # a damaged one
    export_shards(run, spec_of(form, to), size=SIZE[form])
    assert written(to) == written(whole)
    export_shards(run, spec_of(form, to), size=10**9)  # all in one: the others are gone
    assert [path.name for path in to.glob("pairs-*")] == [first]


@pytest.mark.parametrize(
    "pairs", [4, 18, *(pytest.param(n, marks=pytest.mark.slow) for n in (11, 25, 32, 39))]
)
def test_an_export_of_a_run_that_has_grown(run, form, whole, tmp_path, monkeypatch, pairs):
    """The last shard of the shorter one is not full: it is written again."""
    to = tmp_path / "again"
    with monkeypatch.context() as patch:
        every = module._accepted
        patch.setattr(module, "_accepted", lambda *a: itertools.islice(every(*a), pairs))
        export_shards(run, spec_of(form, to), size=SIZE[form])
    assert written(to) != written(whole)
    export_shards(run, spec_of(form, to), size=SIZE[form])
    assert written(to) == written(whole)


def test_photos_without_a_suffix_and_photos_that_are_gone(run, tmp_path, capsys):
    """Photos from Parquet are called by numbers; in tars they get the suffix of their format."""
    photos = tmp_path / "photos"
    shutil.copytree(run.parent / "w" / "photos", photos)
    (photos / "003.jpg").unlink()
    (photos / "004.jpg").write_bytes(b"")
    to = spec_of("wds", tmp_path / "to")
    command = ["export", f"--out={run}", f"--to={to}", "--shard-mb=0.04"]
    assert main([*command, f"--images={photos}"]) == 0
    said = capsys.readouterr().out
    assert "2 photos could not be read: 003.jpg, 004.jpg" in said
    keys = dict(x.split("=", 1) for x in shlex.split(said) if x.startswith("--config.data."))
    pairs = read_pairs(keys["--config.data.pairs"])
    assert len({pair.image for pair in pairs}) == PHOTOS - 2
    assert main([*command, f"--images={photos}"]) == 0  # nothing has changed
    assert "2 photos could not be read" in capsys.readouterr().out
    shutil.rmtree(photos)
    photos.mkdir()
    assert main([*command, f"--images={photos}"]) == 2
    assert f"none of the {PHOTOS} photos can be read from {photos}" in capsys.readouterr().err


def test_a_suffix_by_content(run, tmp_path, monkeypatch):
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8)).save(encoded, "PNG")
    source = types.SimpleNamespace(
        read=lambda name: encoded.getvalue(), identity=lambda name: [name]
    )
    monkeypatch.setattr("data_gen.export.open_images", lambda spec: source)
    made = module._pair
    monkeypatch.setattr(module, "_pair", lambda *a: made(*a).__class__(**_fields(made(*a))))
    done = export_shards(run, spec_of("wds", tmp_path))
    assert read_pairs(done.training["pairs"])[0].image == "pairs-000000.tar/000000000.png"


def _fields(pair) -> dict:
    named = {name: getattr(pair, name) for name in pair.__slots__}
    return named | {"image": Path(pair.image).stem}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_whole_run_from_shards_into_shards(form, tmp_path):
    """Captions and photos from tars, or from Parquet; what it writes is read by training."""
    shows = world(tmp_path / "w", PHOTOS)
    content = json.loads((tmp_path / "w" / "captions.json").read_text())
    rows = []
    for image in content["images"]:
        data = (tmp_path / "w" / "photos" / image["file_name"]).read_bytes()
        texts = [a["caption"] for a in content["annotations"] if a["image_id"] == image["id"]]
        rows.append({"image": {"bytes": data, "path": image["file_name"]}, "captions": texts})
    if form == "wds":
        for shard in range(2):
            with webdataset.TarWriter(str(tmp_path / f"in-{shard}.tar")) as writer:
                for i, row in enumerate(rows[shard::2]):
                    sample = {"__key__": f"{shard}{i:03d}", "jpg": row["image"]["bytes"]}
                    writer.write(sample | {"json": {"captions": row["captions"]}})
        spec, fields = f"wds:{tmp_path}/in-{{0..1}}.tar", "captions=json.captions"
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet", row_group_size=5)
        spec, fields = f"parquet:{tmp_path}/in.parquet", "captions=captions"
    exported = []
    with FaultServer(shows, POOL) as server:
        for out in (tmp_path / "one", tmp_path / "two"):
            flags = [f"--captions={spec}", f"--images={spec}", f"--config.input.fields={fields}"]
            given = arguments(tmp_path / "w", out, server, *flags)
            given = [
                x for x in given if not x.startswith((f"--captions={tmp_path}/w", "--images=/"))
            ]
            assert main(given) == 0
            to = spec_of("wds", out / "shards")
            assert main(["export", f"--out={out}", f"--to={to}", "--shard-mb=0.04"]) == 0
            exported.append(written(out / "shards"))
    assert len(exported[0]) > 3 and exported[0].keys() == exported[1].keys()
    pairs = read_pairs(f"wds:{tmp_path}/one/shards")
    photos = open_images(f"wds:{tmp_path}/one/shards")
    assert len(pairs) > PHOTOS and {photos.read(pair.image) for pair in pairs} == {
        row["image"]["bytes"] for row in rows
    }
    for pair in pairs:
        assert pair.object not in shows[hashlib.sha256(photos.read(pair.image)).hexdigest()]
    texts = [
        [(pair.caption, pair.negated) for pair in read_pairs(f"wds:{tmp_path}/{run}/shards")]
        for run in ("one", "two")
    ]
    assert texts[0] == texts[1]


BAD = {
    "tfds:coco/train": "shards are written as wds: and parquet:",
    "arrayrecord:DIR": "shards are written as wds: and parquet:",
    "wds:gs://bucket/x-{000..}.tar": "write to a folder of this machine",
    "wds:DIR/x.tar": r"where the number of a shard goes: wds:DIR/pairs-\{000000\.\.\}\.tar",
    "parquet:DIR/{00..}-{00..}.parquet": "where the number of a shard goes: parquet:DIR",
}


@pytest.mark.parametrize("to", BAD)
def test_a_place_that_means_nothing(run, to, tmp_path):
    with pytest.raises(InputError, match=BAD[to]):
        export_shards(run, to.replace("DIR", str(tmp_path)))


def test_a_folder_alone_a_size_of_nothing_and_a_place_in_use(run, tmp_path, capsys):
    done = export_shards(run, f"wds:{tmp_path}/new")
    assert done.training["images"] == f"wds:{tmp_path}/new/pairs-{{000000..000000}}.tar"
    assert main(["export", f"--out={run}", f"--to=wds:{tmp_path}", "--shard-mb=0"]) == 2
    assert "--shard-mb=0: a shard has some megabytes" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["export", f"--out={run}", f"--to=wds:{tmp_path}/file/x"]) == 5
    assert "could not be written" in capsys.readouterr().err


def test_the_printed_lines_for_datasets_name_every_file_and_no_other(
    run, form, tmp_path, capsys, monkeypatch
):
    """The lines were run with datasets 5.2.0, which is not installed here."""
    asked = []
    module = types.ModuleType("datasets")
    module.load_dataset = lambda kind, **options: asked.append((kind, options))
    monkeypatch.setitem(sys.modules, "datasets", module)
    command = ["export", f"--out={run}", f"--shard-mb={SIZE[form] / 1e6}"]
    kind = "webdataset" if form == "wds" else "parquet"
    for to, name in (
        (spec_of(form, tmp_path / "shards"), f"shards/pairs-*.{FORMS[form]}"),
        (tmp_path / "files", "files/pairs.parquet"),
    ):
        assert main([*command, f"--to={to}"]) == 0
        lines = capsys.readouterr().out.split("or read them with datasets\n")[1]
        exec("\n".join(line.strip() for line in lines.splitlines()), {})
        wanted = {"data_files": str(tmp_path / name), "split": "train"}
        assert asked.pop() == (kind if "*" in name else "parquet", wanted)
        assert (tmp_path / "files" / "pairs.parquet").is_file() or "*" in name
    names = {path.name for path in (tmp_path / "shards").iterdir()}
    shards = {path.name for path in (tmp_path / "shards").glob(f"pairs-*.{FORMS[form]}")}
    assert len(shards) > 1
    assert names - shards == {"statements.parquet", "export.json", ".export.lock"}
