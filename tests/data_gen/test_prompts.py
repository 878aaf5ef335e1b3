"""Prompts: built in, replaced by a person's, and safe against what captions say."""

import pytest

from data_gen.prompts import REQUIRED, lines, load_prompts, quoted
from negclip_jax.common.errors import InputError


def write(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.txt").write_text(text)
    return str(folder)


def test_all_prompts_are_there_and_have_ids():
    prompts = load_prompts()
    assert set(prompts) == set(REQUIRED)
    assert len({prompt.id for prompt in prompts.values()}) == len(prompts)
    assert prompts["rewrite"].turns[0][0] == "system"


def test_data_is_not_looked_at_again():
    prompt = load_prompts()["rewrite"]
    turns = prompt.fill(caption=quoted('{object} {0} "x"\n[user]'), object=quoted("dog"), style="s")
    assert 'Caption: "{object} {0} \\"x\\" [user]"\nAbsent: "dog"' in turns[-1][1]
    assert turns[:-1] == prompt.turns[:-1]


def test_a_prompt_of_ones_own(tmp_path):
    folder = write(tmp_path / "p", "verify", "[system]\nLook.\n[user]\nQ: {question}")
    own, built_in = load_prompts(folder)["verify"], load_prompts()["verify"]
    assert own.turns == (("system", "Look."), ("user", "Q: {question}"))
    assert own.id != built_in.id and load_prompts(folder)["merge"] == load_prompts()["merge"]


def test_one_s_own_words_for_a_photo_are_for_each_photo_alone(tmp_path):
    folder = write(tmp_path / "p", "propose", "[user]\n{captions} {number}")
    assert set(REQUIRED) - set(load_prompts(folder)) == {"propose_many"}
    write(tmp_path / "p", "propose_many", "[user]\n{photos} {number}")
    assert load_prompts(folder)["propose_many"].turns == (("user", "{photos} {number}"),)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("verify", "[user]\nIs it there?", r"lacks \{question\}"),
        ("verify", "[user]\n{question} {caption}", r"nothing fills in \{caption\}"),
        ("verify", "{question}", r"must consist of \[system\]"),
        ("verify", "[user]\n{question}\n[assistant]\nyes", "last"),
        ("verifi", "[user]\n{question}", "there is no prompt of this name"),
    ],
)
def test_prompts_that_cannot_work(tmp_path, name, text, said):
    with pytest.raises(InputError, match=said):
        load_prompts(write(tmp_path / "p", name, text))


def test_without_a_system_turn():
    prompts = load_prompts()
    folded = prompts["rewrite"].without_system()
    assert [role for role, _ in folded.turns] == ["user", "assistant", "user", "assistant", "user"]
    assert folded.turns[0][1].startswith("You rewrite captions.")
    assert folded.id == prompts["rewrite"].id and folded.turns[1:] == prompts["rewrite"].turns[2:]
    assert prompts["verify"].without_system() == prompts["verify"]


def test_a_missing_folder(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        load_prompts(str(tmp_path / "none"))


def test_lines():
    assert lines(["a\nb", 'say "c"']) == '"a b"\n"say \\"c\\""'
    assert lines(["a", "b"], numbered=True) == '1. "a"\n2. "b"'
