"""Flickr30k retrieval from each of its three files."""

import pytest
from tiny_evals import AllThere, features, karpathy_content, numbers, write_json

from evals.benchmarks import flickr30k_retrieval


def karpathy(folder):
    content = karpathy_content(8)
    for i, image in enumerate(content["images"]):
        del image["filepath"], image["cocoid"]  # Flickr30k's has neither
        image["filename"] = f"{i}.jpg"
    write_json(folder / "dataset_flickr30k.json", content)
    return content


def blip(folder):
    content = [
        {
            "image": f"flickr30k-images/{i['filename']}",
            "caption": [s["raw"] for s in i["sentences"]],
        }
        for i in karpathy(folder)["images"]
        if i["split"] == "test"
    ]
    (folder / "dataset_flickr30k.json").unlink()
    write_json(folder / "flickr30k_test.json", content)


def lines(folder):
    rows = ["image,caption"]
    for image in karpathy(folder)["images"]:
        if image["split"] == "test":
            rows += [f"{image['filename']},{s['raw']}" for s in image["sentences"]]
    (folder / "dataset_flickr30k.json").unlink()
    (folder / "flickr30k_test_karpathy.txt").write_text("\n".join(rows))


@pytest.mark.parametrize("write", [karpathy, blip, lines])
def test_each_form(tmp_path, write):
    write(tmp_path)
    problem = flickr30k_retrieval.load(AllThere((tmp_path,)))
    assert [ref.path.rpartition("/")[2] for ref in problem.images] == [
        f"{i}.jpg" for i in (1, 2, 3, 5, 6, 7)
    ]
    assert problem.total == 16 and "Thing 7, view 2." in problem.texts
    assert numbers(problem.score(*features(problem))).keys() >= {"t2i_recall@5", "i2t_recall@5"}
