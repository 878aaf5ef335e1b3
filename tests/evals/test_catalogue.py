"""The page of benchmarks: all of them, some of them, an unknown one."""

from evals import catalogue, registry


def test_every_benchmark_is_there_once_under_its_file():
    page = catalogue.render()
    listed = [line.split("`")[1] for line in page.splitlines() if line.startswith("- `")]
    assert sorted(set(registry.BENCHMARKS) & set(listed)) == sorted(registry.BENCHMARKS)
    assert all(listed.count(name) == 1 for name in registry.BENCHMARKS)
    titles = [line for line in page.splitlines() if line.startswith("## ")]
    assert len(titles) == len({registry.get(n).load.func.__module__ for n in registry.BENCHMARKS})
    assert page.count("Protocol") >= len(titles) - 1  # valse_pieces refers to valse's


def test_some(capsys):
    assert catalogue.main(["pope", "aro_coco_order"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("## POPE as statements") and "- `aro_coco_order`: Which of five" in page
    assert "aro_relation" not in page and "github.com/AoiDragon/POPE" in page


def test_unknown(capsys):
    assert catalogue.main(["pop"]) == 1
    assert "there is no benchmark 'pop'" in capsys.readouterr().err
