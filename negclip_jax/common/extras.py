"""Packages that only some commands need, and the error message where one is missing.

An extra of pyproject.toml brings them: `pip install -e '.[torch]'`, in a clone. They are imported
at the time of the call, so that everything else runs without them.
"""

import importlib
from types import ModuleType

from negclip_jax.common.errors import InputError


def install(extra: str) -> str:
    """The shell command that installs an extra, for the root of a clone.

    Never by the name negclip-jax: this project is not on the package index, and whoever takes the
    name there would be installed.
    """
    return f"pip install -e '.[{extra}]'"


def require(module: str, *, extra: str, why: str) -> ModuleType:
    """Imports an optional package, or InputError; `why` are the message's first words."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name == module:
            problem = f"the package {module}, which is not installed"
        else:  # installed, and something below it is missing or of another version
            problem = f"the package {module}, which cannot be imported ({error})"
        raise InputError(f"{why} needs {problem}: {install(extra)}") from error
