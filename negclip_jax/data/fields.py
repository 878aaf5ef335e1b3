"""Which field of a record is what of a pair, in the user's words: the key `data.fields`.

    caption=title                    a column of CSV or Parquet, a key of JSONL, COCO, ArrayRecord
    caption=txt,negated=json.no_dog  tars: the member with this suffix, a key of the JSON member
    foils=wrong_1,foils=wrong_2      several texts, or fields that are lists of texts
    captions=sentences               a list of captions, each of which is a pair
    captions=sentences.raw           the same where it lists objects with the key `raw`

A key of an object inside is OUTER.INNER, as in `json.no_dog` of a Parquet file made of tars. Parts
of a pair that are not named are found as without `data.fields`. A record of a photo whose `pairs`
lists objects with these parts, as `data_gen export` writes it, is as many pairs, where no text is
named.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from negclip_jax.common.problems import first
from negclip_jax.data.records import FIELDS, PairError

Named = Mapping[str, tuple[str, ...]]  # part of a pair to the names of its fields

PARTS = (*FIELDS, "captions")
TEXTS = {"caption", "captions", "negated", "foils"}
_ABSENT = object()
_SHOWN = 20  # names of fields in an error


def parse(text: str) -> Named:
    """The fields that a user has named; raises PairError for what names none."""
    named: dict[str, tuple[str, ...]] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        part, sign, name = (x.strip() for x in item.partition("="))
        if not (sign and name) or part not in PARTS:
            raise PairError(
                f"data.fields: cannot read {item!r}: write PART=FIELD with commas between, as in "
                f"caption=title,negated=no_caption; the parts of a pair are {', '.join(PARTS)}."
            )
        if part in named and part != "foils":
            raise PairError(f"data.fields names {part} twice: {named[part][0]} and {name}.")
        named[part] = (*named.get(part, ()), name)
    if {"caption", "captions"} <= named.keys():
        raise PairError("data.fields names both caption and captions: one of them says it all.")
    return named


def names_of(named: Named) -> tuple[str, ...]:
    """All names that a user has written, each once."""
    return tuple(dict.fromkeys(name for names in named.values() for name in names))


class Reader:
    """Takes the parts of pairs out of the records of a file, and learns which fields these have.

    Attributes:
      named: by the user.
    """

    def __init__(self, named: Named, required: Sequence[str] = ()):
        """`required`: parts of a pair that some record must have, named or not."""
        self.named = named
        self._held: dict[str, None] = {}  # some of the fields that there are
        given = {*named, *({"caption"} if "captions" in named else ())}
        usual = [part for part in required if part not in given]
        self._unseen = dict.fromkeys([*usual, *names_of(named)])

    def parts(self, source: Mapping[str, Any], usual: Mapping[str, Any] | None = None) -> dict:
        """The parts of pairs that a record holds, None for those that it does not.

        `usual`: those of parts that the user has not named, where they do not stand under their
        own names.
        """
        self.see(source)
        for name in list(self._unseen) if self._unseen else ():
            if look_up(source, name) is not _ABSENT:
                del self._unseen[name]
        usual = source if usual is None else usual
        found = {part: usual.get(part) for part in FIELDS} | {"captions": None}
        if found["foils"] is None:
            found["foils"] = usual.get("foil")
        for part, fields in self.named.items():
            values = [value for name in fields if (value := look_up(source, name)) is not _ABSENT]
            found[part] = joined(values) if len(fields) > 1 else next(iter(values), None)
        return found

    def see(self, source: Mapping[str, Any]) -> None:
        """Remembers some of the fields of a record, for errors."""
        if len(self._held) < _SHOWN:
            self._held |= dict.fromkeys(_listed(source))

    def require_seen(self, path: object) -> None:
        """Raises PairError for a field that no record had."""
        if self._held and self._unseen:
            raise missing(path, next(iter(self._unseen)), list(self._held))

    def listed(self) -> str:
        """Some of the fields that records had."""
        return first(list(self._held), _SHOWN)


def look_up(source: Mapping[str, Any], name: str) -> Any:
    """The field of a record, or `_ABSENT`."""
    if name in source:
        return source[name]
    for dot in (i for i, letter in enumerate(name) if letter == "."):
        inside = source.get(name[:dot])
        if isinstance(inside, Mapping):
            return look_up(inside, name[dot + 1 :])
        if isinstance(inside, list) and inside and all(isinstance(x, Mapping) for x in inside):
            found = [look_up(x, name[dot + 1 :]) for x in inside]
            return [None if x is _ABSENT else x for x in found]
    return _ABSENT


def joined(values: Sequence[Any]) -> list[Any]:
    """The texts and lists of texts of several fields as one list."""
    found: list[Any] = []
    for value in values:
        found += value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    return found


def missing(path: object, name: str, held: Sequence[str]) -> PairError:
    """The error about a field that is not there."""
    return PairError(f'{path} has no column "{name}"; it has: {first(held, _SHOWN)}.')


def _listed(source: Mapping[str, Any]) -> Iterator[str]:
    for key, value in source.items():
        yield key[:40]
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, Mapping):
            yield from (f"{key}.{inner}"[:40] for inner in value)
