"""`refs(SPLITTER).p` of the REFER data sets, RefCOCO, RefCOCO+ and RefCOCOg (lichengunc/refer).

A pickle is a program: `pickle.load` of a file from the internet may run anything. These files hold
lists, dictionaries, strings and numbers, for which no class has to be looked up, so that the
reader here refuses every class. The same records as JSON are read as well.
"""

import pickle
from pathlib import Path
from typing import Any

from evals.reading import read_json
from negclip_jax.common import plain_pickle
from negclip_jax.common.errors import InputError


def read_refs(path: Path) -> list[Any]:
    """The records of a `.p` or `.json` file. Raises InputError."""
    if path.suffix == ".json":
        return read_json(path, list)
    try:
        with path.open("rb") as file:
            # Written by Python 2, whose strings were bytes.
            records = plain_pickle.load(file, encoding="latin-1")
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is refused: {error}, where a file of referring expressions holds plain lists "
            "and dictionaries. Get it again from github.com/lichengunc/refer, or give the records "
            f"as {path.stem}.json"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged pickle raises nearly every type
        raise InputError(f"{path} is damaged or no pickle ({error}): get it again") from None
    if not isinstance(records, list) or not records:
        raise InputError(f"{path} holds no list of referring expressions")
    return records
