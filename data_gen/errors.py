"""The one exception that a person's input can raise in data_gen, which runs without jax."""

from negclip_jax.common.errors import sentence


class InputError(ValueError):
    """Bad input from a person: a file, a setting, a server's address, a disk.

    The message is a sentence that says what is wrong, where, and what to do. Commands print it
    without a traceback and exit with `status`. It is a `sentence`, whatever was quoted in it.
    """

    def __init__(self, message: str, status: int = 2):
        super().__init__(sentence(str(message)))
        self.status = status
