import pytest

from negclip_jax.data.pairs import read_pairs
from negclip_jax.interop import readers
from quickstart.few_scenes import main
from quickstart.world import KINDS


def kinds_of(text: str) -> set[str]:
    return set(text.replace(",", " ").split()) & set(KINDS)


def test_negations_are_true_of_their_scenes_and_foils_false(tmp_path, capsys):
    main([f"--out={tmp_path}/few", "--scenes=20"])
    assert capsys.readouterr().out == (
        f"20 scenes and a tiny CLIP with random weights in {tmp_path}/few\n"
    )
    pairs = read_pairs(tmp_path / "few" / "pairs.jsonl", require_negated=True)
    assert len(pairs) == len({pair.image for pair in pairs}) == 20
    for pair in pairs:
        assert (tmp_path / "few" / "images" / pair.image).is_file()
        there = kinds_of(pair.caption)
        assert len(kinds_of(pair.negated) - there) == 1 and " and no " in pair.negated
        (foil,) = pair.foils
        assert kinds_of(foil) == there and " and no " in foil
    config, _ = readers.read_base(tmp_path / "few" / "checkpoint")
    assert config.text.context_length >= 32


def test_the_same_seed_writes_the_same(tmp_path):
    for name in ("a", "b"):
        main([f"--out={tmp_path}/{name}", "--scenes=5", "--seed=3"])
    files = [p.relative_to(tmp_path / "a") for p in sorted((tmp_path / "a").rglob("*"))]
    files = [p for p in files if (tmp_path / "a" / p).is_file()]
    assert len(files) > 10
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


@pytest.mark.parametrize("scenes", ["0", "-1"])
def test_no_scenes_are_refused(tmp_path, capsys, scenes):
    with pytest.raises(SystemExit):
        main([f"--out={tmp_path}/few", f"--scenes={scenes}"])
    assert "--scenes must be 1 or more" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_a_message(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"quickstart\.few_scenes: "):
        main([f"--out={tmp_path}/file/few"])
