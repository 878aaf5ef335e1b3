"""User errors, and how untrusted text is shown in messages and terminals."""

import contextlib
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import TextIO

_LONGEST = 8000  # characters of a message; a file name or an id inside it may be a megabyte
# What JAX, XLA's allocators and NVIDIA's libraries say of memory, and of devices that are in use.
_MEMORY = re.compile(
    r"RESOURCE_EXHAUSTED|OUT_OF_MEMORY|out of memory|ALLOC_FAILED|bad_alloc|unable to allocate"
    r"|failed to allocate|DNN library initialization failed|CUDNN_STATUS_INTERNAL_ERROR"
    r"|YNNPACK operation failed"  # of a CPU
    r"|unlikely to have enough memory",  # of a TPU's compiler
    re.IGNORECASE,
)
_TAKEN = re.compile(
    r"already in use|in use by another|DEVICE_?S?_?UNAVAILABLE|busy or unavailable"
    r"|device or resource busy|EXCLUSIVE_PROCESS|libtpu (multi-process )?lockfile"
    # Another process has all of the memory, so that not even a context fits.
    r"|(initializ\w+|cuDevicePrimaryCtxRetain|cuCtxCreate)\b.*CUDA_ERROR_OUT_OF_MEMORY",
    re.IGNORECASE,
)
# What XLA says where it could open no GPU; its reasons it only prints.
_NONE_OPENED = re.compile(r"no supported devices found for platform \w+", re.IGNORECASE)


class InputError(ValueError):
    """A user error: a file, a setting, a checkpoint, a server or a disk that cannot be used.

    The message says what is wrong, where, and what to do. Commands exit with it as a one-line
    message, without a traceback, and with `status` instead of their own for user errors. It is
    printable and bounded, whatever was quoted in it.
    """

    def __init__(self, message: object = "", status: int | None = None):
        super().__init__(as_message(str(message)))
        self.status = status


@contextlib.contextmanager
def device_errors(advice: str | Callable[[], str] = "") -> Iterator[None]:
    """Makes a user error of too little memory, and of a device that another process has taken.

    `advice`: what to do about memory; a function is called when it is needed. Every command that
    computes runs in such a block.
    """
    try:
        yield
    except Exception as error:
        if (message := _device_message(error)) is None:
            raise
        told = advice if isinstance(advice, str) else advice()
        raise InputError(f"{message}{f' {told}' if told else ''}") from error


def is_of_taken_device(text: str) -> bool:
    """Whether JAX or a library below it says here that another process uses the device."""
    return _TAKEN.search(text) is not None


def _device_message(error: BaseException | None) -> str | None:
    while error is not None and not isinstance(error, InputError):
        # JAX raises RuntimeErrors, at times ValueErrors; other libraries' quotas are other types.
        text = str(error).strip()
        reason = next((line for line in text.splitlines() if _MEMORY.search(line)), text)[:300]
        is_known = isinstance(error, RuntimeError | ValueError)
        if is_known and is_of_taken_device(text):
            return (
                f"the device is used by another process ({text.splitlines()[0][:300]}): end that "
                "one, or choose another device, e.g. with CUDA_VISIBLE_DEVICES."
            )
        if is_known and _NONE_OPENED.search(text):
            return (
                f"no GPU could be opened ({text.splitlines()[0][:300]}): another process holds all "
                "of its memory, or the driver does not work; nvidia-smi shows both. End that "
                "process, or choose another device, e.g. with CUDA_VISIBLE_DEVICES."
            )
        if isinstance(error, MemoryError) or (is_known and _MEMORY.search(text)):
            return (
                f"the device has too little memory ({reason or type(error).__name__}), or other "
                "processes hold what is missing."
            )
        error = error.__cause__
    return None


def as_message(text: str) -> str:
    """The text as a message: `printable`, and without its middle beyond 8,000 characters."""
    return _cut(printable(_cut(text)))


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2 - 30
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"


def printable(text: str) -> str:
    r"""The text as it may go to a terminal: line ends and tabs stay, other controls become `\x1b`.

    Escape sequences could rewrite the screen, and right-to-left marks what a line seems to say.
    Halves of surrogate pairs, which no stream can encode, are written out too.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape").decode()
        for c in text
    )  # fmt: skip


def one_line(text: str) -> str:
    """A name, as `printable`, whose line ends and tabs are written out too: it stays one name."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def say(text: str, file: TextIO | None = None) -> None:
    """Prints a line that may quote untrusted names, to stdout or another stream, as `printable`."""
    print(printable(text), file=file)
