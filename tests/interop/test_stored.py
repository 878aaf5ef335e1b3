from negclip_jax.common.errors import InputError
from negclip_jax.interop import files, stored


def test_a_bad_checkpoint_is_a_persons_mistake():
    """Commands print an InputError as a sentence; the error has one class under both names."""
    assert issubclass(stored.CheckpointError, InputError)
    assert files.CheckpointError is stored.CheckpointError
