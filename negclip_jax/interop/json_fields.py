"""Values of somebody's config.json, checked against the type of our default."""

from typing import Any

_WORDS = {int: "one whole number", float: "a number", str: "a name"}


def fields(section: dict, keys: dict[str, str], where: str, default: Any) -> dict[str, Any]:
    """Values of a section under our names; what it leaves out keeps our default.

    Args:
      section: of config.json.
      keys: their key to our field.
      where: what goes before a key in messages.
      default: an object with our fields, whose values give the types.

    Raises:
      ValueError: a value of the wrong type.
    """
    return {
        ours: typed(section[theirs], getattr(default, ours), f"{where}{theirs}")
        for theirs, ours in keys.items()
        if theirs in section
    }


def typed(value: Any, example: Any, where: str) -> Any:
    """Checks a JSON value against the type of our default; sizes may be written `[224, 224]`."""
    if where.endswith("_size") and isinstance(value, list) and len(set(map(repr, value))) == 1:
        value = value[0]
    kinds = (int, float) if isinstance(example, float) else type(example)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ValueError(f"{where} is {value!r}, which is not {_WORDS[type(example)]}")
    # Token ids may be 0, every other whole number is a size.
    if isinstance(example, int) and value < (0 if where.endswith("_id") else 1):
        raise ValueError(f"{where} is {value}, which is too small")
    if isinstance(example, float) and not abs(value) < 1e300:  # an int has no infinity
        raise ValueError(f"{where} is {value}, which is not finite")
    return value
