"""What is accepted and what is not, on written cases, on recorded answers and on noise."""

import ast
import csv
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from data_gen.answers import clean
from data_gen.rules import REASONS, check
from negclip_jax.data.tokenizer import load_tokenizer
from negclip_jax.language.mentions import find_same, mentioned
from negclip_jax.language.names import object_name
from negclip_jax.language.negation import cue_of, find_cues
from negclip_jax.language.text import tokenize


def reasons(text, caption="A dog on a street", obj="cat", **more):
    return check(text, caption=caption, obj=obj, count_tokens=lambda t: len(t.split()), **more)


@pytest.mark.parametrize(
    ("text", "obj", "expected"),
    [
        ("A dog on a street with no cat.", "cat", []),
        ("No cats are visible, but a dog is on a street.", "cat", []),
        ("A dog on a road without a kitty or a cat", "cat", ["affirmed"]),
        ("A dog on a street, with nobody in sight", "person", []),
        ("", "cat", ["empty"]),
        ("...", "cat", ["empty"]),
        ("A dog on a street", "cat", ["unchanged", "no_cue", "object_missing"]),
        ("A dog on a street with a cat", "cat", ["no_cue", "affirmed"]),
        ("A dog on a street, not only with a cat", "cat", ["no_cue", "affirmed"]),
        ("A dog on a street with no car", "cat", ["object_missing"]),
        ("A dog not sitting beside a cat on a street", "cat", ["out_of_scope"]),
        ("A dog on a street with no cat, but a kitten", "cat", ["affirmed"]),
        ("A dog, not a cat, on a street without anything", "cat", ["double_negation"]),
        ("There is no doubt that a cat and a dog are on a street", "cat", ["no_cue", "affirmed"]),
        ("No one can deny that a cat and a dog are on a street", "cat", ["out_of_scope"]),
        ("A dog on a street is not without a cat", "cat", ["double_negation"]),
        ("A dog on a street with no lack of cats", "cat", ["double_negation"]),
        ("A dog on a street with no cat food", "cat", ["out_of_scope"]),
        ("A dog on a street with no black cat", "cat", ["restricted", "changed"]),
        ("A dog on a street with no birds, cats or mice", "cat", ["invented"]),
        ("A view with no cat", "cat", ["lost"]),
        ("A street without a dog or a cat", "cat", ["lost"]),
        ("A dog on a street without feeding cats", "cat", ["restricted"]),
        ("A dog on a street without holding a cat", "cat", []),
        ("A dog on a street, with no cat on the left", "cat", ["restricted"]),
        ("A dog on a street with a tree, a bench and no cat", "cat", ["invented"]),
        ("A dog on a street without a umbrella", "umbrella", ["grammar"]),
        ("A dog on a street, but no cats is there", "cat", ["grammar"]),
        ("A dog on a street, and no cat are visible", "cat", ["grammar"]),
        ("A dog on a street, but there are no cat", "cat", ["grammar"]),
        ("A dog on a street, but there is no cats", "cat", ["grammar"]),
        ("A dog on a street, but there are no sheep", "sheep", []),
        ("A dog on a street without a people", "person", ["grammar"]),
        ("A dog on a street with no dog", "dog", ["affirmed", "mentioned"]),
        ("A dog on a street. I have added the absence: no cat", "cat", ["chatter"]),
        ("Sure, here is the new caption with no cat: a dog on a street", "cat", ["chatter"]),
        ("I cannot rewrite this: a dog on a street, a cat", "cat", ["refusal", "out_of_scope"]),
    ],
)
def test_reasons(text, obj, expected):
    found = reasons(text, obj=obj)
    assert set(found) >= set(expected)
    assert bool(found) == bool(expected)


def test_lists_of_rewrites_that_were_drawn_up_before():
    lines = Path(__file__).with_name("rewrites.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split("|") for line in lines if not line.startswith("#")]
    found = [
        (truth, reasons(text, caption, object_name(obj))) for obj, caption, text, truth in rows
    ]
    assert sum(bool(why) for truth, why in found if truth == "1") <= 3
    assert sum(not why for truth, why in found if truth == "0") <= 4


def test_all_reasons_come_at_once_in_their_order():
    found = reasons("As an AI language model, I cannot help with `umbrellas`.")
    assert found == ["refusal", "markup", "object_missing", "lost"]
    assert set(found) < set(REASONS)


def test_length_counts_the_end_token():
    text = "A dog on a street with no cat"
    arguments = {"caption": "A dog on a street", "obj": "cat"}
    assert check(text, **arguments, count_tokens=lambda t: 77) == []
    assert check(text, **arguments, count_tokens=lambda t: 78) == ["too_long"]


def test_objects_of_other_captions_are_mentioned_and_known():
    text = "A dog on a street with a tree, a bench and no cat"
    assert reasons(text, other_captions=["A tree and a bench"]) == []
    assert "mentioned" in reasons(text, other_captions=["two kittens and a tree with a bench"])


# What a small model really wrote (greedy and sampled), see also the captions further below.
@pytest.mark.parametrize(
    ("caption", "obj", "answer", "expected"),
    [
        ("A laptop on a table", "fork", "A laptop on a table with a fork", "affirmed"),
        ("A laptop on a table", "fork", "A laptop on a table", "unchanged"),
        ("A red parachute in the sky", "person",
         '"No person is in the image, but a red parachute is visible in the sky." # Note: I added '
         "a minor modification here for style consistency", None),
        ("Two cups filled with veggies", "cup",
         "This seems to be a contradictory statement since it both affirms and denies a cup. "
         "Therefore I cannot rephrase the caption.", "refusal"),
        ("A brown dog on a couch", "person",
         "(Note: This caption is self-contradictory. Please correct the sentence.)", "chatter"),
    ],
)  # fmt: skip
def test_recorded_answers(caption, obj, answer, expected):
    found = reasons(clean(answer), caption, obj)
    assert expected in found if expected else found == []


def test_noise_never_raises_and_nothing_without_a_cue_is_accepted():
    rng = random.Random(0)
    noise = """no not without cat cats a the , . ; : but and is are n't isn’t with dog street on
    none 'No' nor neither -free {obj} %s é ß 你好 <|end|> ** # 77 absent of missing one no cat"""
    pieces = [*noise.split(), "\x00", "\ud83d", "\n", "\t", ""]
    accepted = 0
    for _ in range(4000):
        text = " ".join(rng.choices(pieces, k=rng.randrange(14)))
        found = reasons(text)
        if not found:
            accepted += 1
            tokens = tokenize(text)
            assert cue_of(text) is not None
            assert len(find_cues(tokens)) == 1
            assert find_same("cat", tokens)
        assert reasons(clean(text)) is not None
    assert accepted > 0


@pytest.fixture(scope="module")
def count(shared_data):
    tokenizer = load_tokenizer(shared_data / "clip_tokenizer")
    return lambda text: len(tokenizer.encode(text)) + 2


def test_real_negated_captions_are_recognised(shared_data):
    """A wide pattern finds a cue in 24,621 of NegBench's 25,014 captions; these are 24,890.

    The others say "unoccupied", "instead of" and the like, or are no captions.
    """
    folder = shared_data / "benchmarks" / "negbench"
    path = folder / "COCO_val_negated_retrieval_llama3.1_rephrased_affneg_true.csv"
    with path.open(newline="", encoding="utf-8") as file:
        lists = [ast.literal_eval(row["captions"]) for row in csv.DictReader(file)]
    texts = [text for captions in lists[::5] for text in captions]
    assert sum(cue_of(text) is not None for text in texts) > 0.99 * len(texts)


def test_real_pairs_are_rarely_rejected(shared_data, count):
    """1,055 real rewrites by an LLM, each with the denied one of COCO's classes."""
    content = json.loads((shared_data / "coco" / "negation_pairs.json").read_text())
    instances = json.loads((shared_data / "coco" / "instances.json").read_text())
    names = [category["name"] for category in instances["categories"]]
    rejected = total = 0
    for row in content["annotations"]:
        text, caption = row["updated_caption"], row["caption"]
        tokens = tokenize(text)
        named = [name for name in names if find_same(name, tokens)] or ["person"]
        fresh = [name for name in named if not mentioned(name, [caption])]
        if fresh:
            total += 1
            found = [check(text, caption=caption, obj=n, count_tokens=count) for n in fresh]
            rejected += bool(min(found, key=len))
    assert total > 900
    assert rejected < 0.02 * total


def test_language_audit_and_report_need_neither_jax_nor_models():
    program = (
        "import sys\n"
        "import negclip_jax.language.foils, negclip_jax.language.questions\n"
        "import data_gen.rules, data_gen.annotations, data_gen.audit\n"
        "names = {'jax', 'flax', 'torch', 'transformers', 'ml_collections', 'aiohttp'}\n"
        "sys.exit(', '.join(names & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("caption", "obj", "rewrite"),
    [
        ("A man in a meadow.", "moose", "A man in a meadow where there are no moose."),
        ("A field at dawn.", "moose", "A field at dawn with no moose in sight."),
        ("A bathroom with a mirror.", "urinal", "A bathroom with a mirror, without a urinal."),
        ("A room with a lamp.", "ottoman", "A room with a lamp, but no ottomans."),
        ("A room with a lamp.", "ottoman", "A room with a lamp but without an ottoman."),
        ("A man on a bench.", "hat", "A hatless man on a bench."),
        ("A boat on the sea.", "cloud", "A boat on the sea under a cloudless sky."),
        ("A park with benches.", "kid", "A park with benches but no children."),
        ("A street at night.", "UFO", "A street at night without a UFO in the sky."),
        ("A shelf with books.", "LED light", "A shelf with books and no LED lights."),
        ("A driveway before a house.", "RV", "A driveway before a house, with no RV in it."),
        ("A table with plates.", "popcorn", "A table with plates and no popcorn."),
        ("A bowl on a table.", "sushi", "A bowl on a table with no sushi in it."),
        ("A woman by a window.", "piñata", "A woman by a window, and there is no piñata."),
        ("A beach with chairs.", "lifeguard", "There is no lifeguard on a beach with chairs."),
        ("A lake with a dock.", "duckling", "A lake with a dock but no ducklings."),
        ("A wall with a poster.", "scaffolding", "A wall with a poster and no scaffolding."),
        ("A desk with a lamp.", "spacecraft", "A desk with a lamp and no spacecraft."),
        ("A garden with a fence.", "octopus", "A garden with a fence, without an octopus."),
        ("A kitchen with a stove.", "spatula", "A kitchen with a stove, no spatula in sight."),
        ("A cafe with tables.", "overalls", "A cafe with tables and no overalls."),
        ("A hallway with a rug.", "ukulele", "A hallway with a rug but no ukulele."),
        ("A park with a slide.", "Christmas tree", "A park with a slide but no Christmas tree."),
        ("A pond with reeds.", "salmon", "A pond with reeds and no salmon."),
    ],
)  # fmt: skip
def test_right_sentences_about_any_thing(caption, obj, rewrite):
    assert check(rewrite, caption=caption, obj=obj, count_tokens=lambda t: len(t.split())) == []


@pytest.mark.parametrize(
    ("caption", "obj", "rewrite", "reason"),
    [
        ("A table with plates.", "popcorn", "A table with plates without a popcorn.",
         "grammar"),
        ("A field at dawn.", "moose", "A field at dawn with no mooses.",
         "object_missing"),
        ("A desk with paper.", "pen", "A desk with paper and without a pencil.",
         "object_missing"),
        ("A plate on a table.", "lemon", "A plate on a table with no lime.",
         "object_missing"),
        ("A man with his labrador.", "dog", "A man with his labrador, but no dog.",
         "affirmed"),
        ("A street with shops.", "car", "A street with shops and no cars except one.",
         "restricted"),
        ("A street with shops.", "car", "A street with shops and no red cars.",
         "restricted"),
        ("Two boys play in a park.", "ball", "Five boys play in a park without a ball.",
         "changed"),
        ("A brown horse in a field.", "dog", "A brown horse and three purple clowns, no dog.",
         "changed"),
        ("A boy on a small pony.", "hat", "A girl on a large pony with no hat.",
         "changed"),
        ("A man in the rain.", "umbrella", "A man in the rain does not open his umbrella.",
         "restricted"),
        ("A street with shops.", "car", "A street with shops and no cars but one.",
         "restricted"),
        ("A street with shops.", "car", "A street with shops and only one car, no others.",
         "out_of_scope"),
        ("A street with shops.", "bus", "A street with shops and no big buses.",
         "restricted"),
        ("A cake on a table.", "candle", "A cake on a table with no lit candles.",
         "restricted"),
        ("A room with a bed.", "lamp", "A room with a bed and a castle and no lamp.",
         "invented"),
        ("Three cats on a wall.", "dog", "Two cats on a wall and no dog.",
         "changed"),
        ("A black dog on a rug.", "cat", "A white dog on a rug with no cat.",
         "changed"),
        ("A man holds a phone.", "laptop", "A woman holds a phone, with no laptop.",
         "changed"),
        ("A street with shops.", "car", "A street with shops and hardly any cars.",
         "no_cue"),
        ("A street with shops.", "car", "A street with shops and not many cars.",
         "restricted"),
        ("A table with plates.", "coffee", "A table with plates and without a coffee.",
         "grammar"),
        ("A beach.", "surfer", "A beach with an surfboard but no surfer.",
         "grammar"),
        ("A garden with a fence.", "octopus", "A garden with a fence, without a octopus.",
         "grammar"),
        ("A hallway with a rug.", "ukulele", "A hallway with a rug but without an ukulele.",
         "grammar"),
    ],
)  # fmt: skip
def test_wrong_sentences_about_any_thing(caption, obj, rewrite, reason):
    assert reason in check(rewrite, caption=caption, obj=obj, count_tokens=lambda t: len(t.split()))
