"""The table of nouns is extracted from WordNet's files."""

from negclip_jax.language.extract_wordnet import extract, unseen

LEXNAMES = "00\tnoun.Tops\t1\n01\tnoun.artifact\t1\n02\tnoun.act\t1\n"
DATA = """\
  1 the licence
00000001 00 n 01 thing 0 001 ~ 00000002 n 0000 | what there is
00000002 01 n 01 type_7_headgear 0 001 @ 00000001 n 0000 | a number in its name
00000008 00 n 01 taxonomic_group 0 000 | of families
00000009 01 n 01 Hatidae 0 001 @ 00000008 n 0000 | a family
00000003 01 n 02 hat 0 Big_Hat 1 002 @ 00000002 n 0000 + 00000009 v 0101 | on a head
00000004 02 n 01 hat 0 000 | to give one a hat
00000005 01 n 01 Fedora 0 001 @i 00000003 n 0000 | one hat with a name
00000006 01 n 02 hat 0 cap_2 0 001 @ 00000003 n 0000 | another one
00000007 01 n 01 hat 0 001 @ 00000003 n 0000 | the third
"""
INDEX = """\
  1 the licence
thing n 1 1 ~ 1 0 00000001
taxonomic_group n 1 0 1 0 00000008
hatidae n 1 1 @ 1 0 00000009
type_7_headgear n 1 1 @ 1 0 00000002
hat n 4 1 @ 4 0 00000004 00000003 00000006 00000007
big_hat n 1 1 @ 1 0 00000003
cap_2 n 1 1 @ 1 0 00000006
"""


def test_extraction_ranks_the_visible_senses_and_leaves_latin_families_out(tmp_path):
    for name, text in (("lexnames", LEXNAMES), ("data.noun", DATA), ("index.noun", INDEX)):
        (tmp_path / name).write_text(text)
    assert list(extract(tmp_path)) == [
        "Tops\tthing\t-",
        "artifact\that, big hat\t0",  # what is directly above has no line
        "artifact\that*\t1",  # the act is no sense that a photo shows, a third one is left out
        "Tops\ttaxonomic group\t-",
    ]


SENSES = """\
trick%1:02:00:: 00000001 1 5
trick%1:01:00:: 00000002 2 3
trick%2:01:00:: 00000003 1 9
drain%1:02:00:: 00000004 1 2
drain%1:01:00:: 00000005 2 2
vanity%1:02:00:: 00000006 1 0
"""


def test_words_that_are_mostly_used_for_acts(tmp_path):
    (tmp_path / "lexnames").write_text(LEXNAMES)
    (tmp_path / "index.sense").write_text(SENSES)
    assert list(unseen(tmp_path)) == ["trick"]  # half is not most, and no place says nothing
