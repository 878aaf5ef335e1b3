"""The one exception that a person's input can raise."""


class InputError(ValueError):
    """Bad input from a person: a file, a setting, a checkpoint, a disk.

    The message is a sentence that says what is wrong, where, and what to do. Commands print it
    without a traceback and exit with status 1.
    """
