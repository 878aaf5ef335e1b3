"""Published layouts of phrases with masks, made small, and the real ones that are at hand."""

import json
import pickle

import pytest

from evals.images import DataRoots
from evals.segmentation import masks, sources
from negclip_jax.common.errors import InputError


def roots(folder) -> DataRoots:
    return DataRoots((folder,))


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_categories_join_what_is_annotated_crowds_included(annotated):
    (found,) = sources.categories(roots(annotated), None)
    assert [(p.item, p.text) for p in found.phrases[:2]] == [("1/cat", "cat"), ("1/dog", "dog")]
    assert found.total == len(found.phrases) == 6 and not found.missing
    dog = found.phrases[1]
    assert dog.size == (40, 61) and len(dog.segmentations) == 2
    crowd, square = (masks.mask_of(s, *dog.size) for s in dog.segmentations)
    assert crowd[:, 10:30].all() and crowd.sum() == 40 * 20 and square.sum() == 25 * 21


def phrasecut_files(data):
    square = [[5, 5], [20, 5], [20, 20], [5, 20]]
    records = [
        {"task_id": f"{i}__0", "image_id": i, "phrase": f"thing {i} without a hat",
         "ann_ids": [1, 2], "instance_boxes": [[5, 5, 15, 15]] * 2,
         "Polygons": [[square], [square, [[30, 30], [35, 30], [35, 35]]]]}
        for i in (1, 2, 61564)
    ]  # fmt: skip
    write(data / "VGPhraseCut_v0" / "refer_test.json", records)
    sizes = [{"image_id": i, "height": 40, "width": 60 + i, "split": "test"} for i in (1, 2)]
    write(data / "VGPhraseCut_v0" / "image_data_split3000.json", sizes)
    for i in (1, 2):
        name = data / "photos" / f"{i:012d}.png"
        name.rename(data / "photos" / f"{i}.jpg")
    return records


def test_phrasecut_joins_the_polygons_of_all_instances_and_drops_17_photos(annotated):
    phrasecut_files(annotated)
    (found,) = sources.phrasecut(roots(annotated), None)
    assert [(p.item, p.image, p.size) for p in found.phrases] == [
        ("1__0", "1.jpg", (40, 61)),
        ("2__0", "2.jpg", (40, 62)),
    ]
    assert found.notes == ["1 phrases on the 17 photos of wrong size are left out, as published."]
    assert all(p.negated for p in found.phrases)
    (shape,) = found.phrases[0].segmentations
    assert len(shape) == 3 and masks.mask_of(shape, 40, 61)[5:20, 5:20].all()
    with pytest.raises(InputError, match=r"refer_val\.json is not below"):
        sources.phrasecut(roots(annotated), "val")


def test_polygons_that_are_none_are_named(annotated):
    records = phrasecut_files(annotated)
    records[0]["Polygons"] = [5]
    write(annotated / "VGPhraseCut_v0" / "refer_test.json", records)
    with pytest.raises(InputError, match=r'"Polygons" is not a list of lists \(1\): record 0'):
        sources.phrasecut(roots(annotated), None)


def test_numbers_written_as_strings_and_names_without_digits_are_read(annotated):
    negrefcocog_files(annotated, twin=False)
    content = json.loads((annotated / "instances.json").read_text())
    for annotation in content["annotations"]:
        annotation |= {"category_id": str(annotation["category_id"]), "bbox": annotation["bbox"]}
    content["images"][2]["file_name"] = "photo.png"
    write(annotated / "instances.json", content)
    assert len(sources.categories(roots(annotated), None)[0].phrases) == 3
    assert len(sources.negrefcocog(roots(annotated), None)[0].phrases) == 1


def test_phrasecut_without_sizes_takes_those_of_the_photos(annotated):
    phrasecut_files(annotated)
    (annotated / "VGPhraseCut_v0" / "image_data_split3000.json").unlink()
    (found,) = sources.phrasecut(roots(annotated), None)
    assert [p.size for p in found.phrases] == [None, None]


def refcoco_files(data, name="refs(unc).p"):
    (data / "refcoco").mkdir()
    (data / "instances.json").rename(data / "refcoco" / "instances.json")
    refs = [
        {"ref_id": i, "ann_id": 10 * i, "image_id": i, "category_id": 1,
         "split": "val" if i < 3 else "testA",
         "sentences": [{"raw": "A", "sent": f"cat {i}", "sent_id": 1, "tokens": ["cat"]},
                       {"raw": "B", "sent": "not the dog", "sent_id": 2, "tokens": ["not"]}]}
        for i in (1, 2, 3)
    ]  # fmt: skip
    (data / "refcoco" / name).write_bytes(
        pickle.dumps(refs, 2) if name.endswith(".p") else json.dumps(refs).encode()
    )


@pytest.mark.parametrize("name", ["refs(unc).p", "refs(unc).json"])
def test_refcoco_has_a_phrase_for_every_sentence(annotated, name):
    refcoco_files(annotated, name)
    (found,) = sources.refcoco(roots(annotated), None)
    assert [(p.item, p.text) for p in found.phrases] == [
        ("1/0", "cat 1"), ("1/1", "not the dog"), ("2/0", "cat 2"), ("2/1", "not the dog"),
    ]  # fmt: skip
    assert (found.name, found.title) == ("refcoco_unc", "refcoco unc, val")
    assert found.phrases[0].image == "000000000001.png" and found.phrases[0].size == (40, 61)
    (other,) = sources.refcoco(roots(annotated), "testA")
    assert [p.item for p in other.phrases] == ["3/0", "3/1"]


def test_all_that_is_wrong_with_a_file_comes_in_one_line(annotated):
    refcoco_files(annotated, "refs(umd).json")
    path = annotated / "refcoco" / "refs(umd).json"
    refs = json.loads(path.read_text())
    refs[0]["ann_id"], refs[1]["sentences"], refs[2]["split"] = 999, [], "val"
    path.write_text(json.dumps([*refs, 7]))
    with pytest.raises(InputError) as error:
        sources.refcoco(roots(annotated), None)
    assert "ann_id is not in instances.json (1): record 0" in str(error.value)
    assert '"sentences" is not a list of anything (1): record 1' in str(error.value)
    assert "a record is not an object (1): record 3" in str(error.value)


def test_instances_that_do_not_belong_together(annotated):
    path = annotated / "instances.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["image_id"] = 77
    content["annotations"][1]["category_id"] = 9
    del content["annotations"][2]["segmentation"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        sources.categories(roots(annotated), None)
    for words in ("not among the images (1)", "not among the categories (1)", "missing (1)"):
        assert words in str(error.value)


def negrefcocog_files(data, twin: bool):
    content = json.loads((data / "instances.json").read_text())
    left, right = [5.0, 4.0, 20.0, 30.0], [30.0, 6.0, 25.0, 30.0]
    boxes = [left, right, right if twin else [1.0, 1.0, 3.0, 3.0]]
    for annotation, box in zip(content["annotations"][:3], boxes, strict=True):
        annotation |= {"bbox": box, "category_id": 2}
    content["images"][0]["file_name"] = "000000000001.png"
    write(data / "instances.json", content)
    record = {
        "image": "COCO_train2014_000000000001.jpg",
        "phrase": "dog with no hat",
        "ref_bbox": [0, 0, 30.0, 40],
        "bbox_list": [[0, 0, 30.0, 40], [25.0, 0, 36.0, 40]],
    }
    elsewhere = record | {"image": "COCO_train2014_000000000009.jpg"}
    write(data / "NegRefCOCOg.json", [record, elsewhere])


def test_negrefcocogs_object_is_the_one_that_its_boxes_were_cut_from(annotated):
    negrefcocog_files(annotated, twin=False)
    (found,) = sources.negrefcocog(roots(annotated), None)
    (phrase,) = found.phrases
    assert phrase.text == "dog with no hat" and phrase.negated
    mask = masks.mask_of(phrase.segmentations[0], *phrase.size)
    assert mask.sum() == 25 * 21  # that of the first annotation
    assert found.total == 2 and found.missing == ["COCO_train2014_000000000009.jpg"]


@pytest.mark.parametrize("twin", [True, False])
def test_an_object_that_cannot_be_told_is_not_guessed(annotated, twin):
    negrefcocog_files(annotated, twin=twin)
    if not twin:  # the other object is of another category
        content = json.loads((annotated / "instances.json").read_text())
        content["annotations"][1]["category_id"] = 1
        write(annotated / "instances.json", content)
    (found,) = sources.negrefcocog(roots(annotated), None)
    assert not found.phrases and "1 mean an object that cannot be told" in found.notes[0]


def test_the_real_files_at_hand(shared_data):
    (found,) = sources.categories(roots(shared_data / "coco"), None)
    assert len(found.phrases) == found.total > 900 and not found.missing
    (negated,) = sources.negrefcocog(roots(shared_data), None)
    assert negated.total == 440
    (cat,) = [p for p in negated.phrases if p.text == "cat on toliet not reflection"]
    mask = masks.mask_of(cat.segmentations[0], *cat.size)
    columns = mask.any(axis=0).nonzero()[0]
    assert columns[0] >= 38 and columns[-1] <= 297  # the left one of two cats
