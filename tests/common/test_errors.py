"""Messages: no untrusted text in them moves the cursor or turns the line around.

What devices say of memory, and of other processes, is quoted from issues of JAX and of its users.
"""

import pickle
import types

import numpy as np
import pytest

from negclip_jax.common.errors import InputError, device_errors, one_line, printable, say


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a cat\tand\na dog", "a cat\tand\na dog"),
        ("caf\u00e9 \u732b \U0001f408 \u00a0\u3000", "caf\u00e9 \u732b \U0001f408 \u00a0\u3000"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m \x7f \0 \r", r"\x9b31m \x7f \x00 \r"),
        ("gpj.\u202etac \u2066x\u2069 \u200e", r"gpj.\u202etac \u2066x\u2069 \u200e"),
        ("\ud800 \u2028 \ufeff \U000e0041", r"\ud800 \u2028 \ufeff \U000e0041"),
    ],
)
def test_controls_are_written_out(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown
    assert str(InputError(text)) == shown


@pytest.mark.parametrize("filling", ["x", "\x1b", "\U000e0041"])
def test_a_message_is_never_megabytes_long(filling):
    said = str(InputError("head" + filling * 10**6 + "tail"))
    assert len(said) <= 8000 and said.startswith("head") and said.endswith("tail")
    assert " characters ...] " in said
    assert str(InputError(said)) == said == printable(said)
    long = "a table\n" * 10_000
    assert printable(long) == long  # what a command prints is as long as it is


def test_errors_survive_the_way_between_processes():
    again = pickle.loads(pickle.dumps(InputError("a\x1b.jpg is missing")))
    assert type(again) is InputError and str(again) == r"a\x1b.jpg is missing"


HUGE = (2**23, 2**22)  # 128 TiB of float32: more than any process can address


def of_jax():
    import jax.numpy as jnp

    return jnp.ones(HUGE).block_until_ready()


def raising(error: Exception):
    def fail():
        raise error

    return fail


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (of_jax, "too little memory (RESOURCE_EXHAUSTED: Out of memory allocating 140737488355328"),
        (lambda: np.ones(HUGE, np.float32), "too little memory (Unable to allocate 128. TiB"),
        (raising(RuntimeError("INTERNAL: YNNPACK operation failed: error")), "too little memory"),
        (raising(MemoryError()), "too little memory (MemoryError)"),
        (raising(MemoryError("std::bad_alloc")), "too little memory (std::bad_alloc)"),
        (
            raising(RuntimeError("INTERNAL: x\nCUDA_ERROR_OUT_OF_MEMORY: out of memory\nat y")),
            "too little memory (CUDA_ERROR_OUT_OF_MEMORY: out of memory)",
        ),
        (
            raising(RuntimeError("FAILED_PRECONDITION: DNN library initialization failed.")),
            "other processes hold what is missing",
        ),
        (
            raising(
                RuntimeError(
                    "Unable to initialize backend 'tpu': ABORTED: The TPU is already in use by "
                    "process with pid 7."
                )
            ),
            "used by another process (Unable to initialize backend 'tpu': ABORTED: The TPU is",
        ),
        (
            raising(RuntimeError("INTERNAL: cuCtxCreate: CUDA_ERROR_DEVICE_UNAVAILABLE: busy")),
            "used by another process",
        ),
        (
            raising(
                RuntimeError(
                    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: XLA:TPU compile permanent "
                    "error. Ran out of memory in memory space hbm. Used 63.80G of 30.75G hbm. "
                    "Exceeded hbm capacity by 33.05G.\n\nTotal hbm usage >= 65.05G:\n    reserved"
                )
            ),
            "too little memory (RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: XLA:TPU compile perm",
        ),
        (
            raising(
                RuntimeError(
                    "Compilation failure: Aborting compilation early because it's unlikely to have "
                    "enough memory. Requires 3.47E, has 14.49G available."
                )
            ),
            "too little memory (Compilation failure: Aborting compilation early",
        ),
        (
            raising(
                RuntimeError(
                    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes."
                )
            ),
            "too little memory (RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1717",
        ),
        (
            raising(
                RuntimeError(
                    "Unable to initialize backend 'cuda': INTERNAL: failed call to "
                    "cuDevicePrimaryCtxRetain: CUDA_ERROR_OUT_OF_MEMORY: out of memory; total "
                    "memory reported: 34089730048"
                )
            ),
            "used by another process (Unable to initialize backend 'cuda': INTERNAL: failed call",
        ),
        (
            raising(
                RuntimeError(
                    "Unable to initialize backend 'cuda': INTERNAL: no supported devices found for "
                    "platform CUDA (you may need to uninstall the failing plugin package, or set "
                    "JAX_PLATFORMS=cpu to skip this backend.)"
                )
            ),
            "no GPU could be opened (Unable to initialize backend 'cuda': INTERNAL: no supported",
        ),
        (
            raising(
                RuntimeError(
                    "ABORTED: Internal error when accessing libtpu multi-process lockfile. Run "
                    '"$ sudo rm /tmp/libtpu_lockfile".'
                )
            ),
            "used by another process (ABORTED: Internal error when accessing libtpu multi-process",
        ),
        (
            raising(
                RuntimeError(
                    "open(/dev/vfio/0): Device or resource busy: Couldn't open iommu group"
                )
            ),
            "used by another process (open(/dev/vfio/0): Device or resource busy",
        ),
    ],
)
def test_too_little_memory_and_a_taken_device_are_one_line(work, said):
    with pytest.raises(InputError) as caught, device_errors(lambda: "Lower train.batch_size=8"):
        work()
    message = str(caught.value)
    assert said in message and message.endswith(" Lower train.batch_size=8")
    assert "\n" not in message and len(message) < 600


def test_a_cause_counts_and_other_errors_stay_as_they_are():
    with pytest.raises(InputError, match="too little memory"), device_errors():
        try:
            raise RuntimeError("RESOURCE_EXHAUSTED: x")
        except RuntimeError as error:
            raise KeyError("worker") from error
    quota = types.new_class("HttpError", (Exception,))
    for error in (RuntimeError("x"), KeyError("y"), InputError("out of memory"), quota("429 "
                  "RESOURCE_EXHAUSTED")):  # fmt: skip
        with pytest.raises(type(error)) as caught, device_errors():
            raise error
        assert caught.value is error


def test_a_name_stays_on_one_line_and_what_is_said_is_printable(capsys):
    assert one_line("a\tb\nc\x1b[0m") == r"a\tb\nc\x1b[0m"
    say("two\nlines of \x1b[31mred")
    assert capsys.readouterr().out == "two\nlines of \\x1b[31mred\n"
