"""Names lead to benchmarks, and a wrong one to the list."""

import pytest

from evals import registry
from negclip_jax.common.errors import InputError


@pytest.mark.parametrize("name", registry.BENCHMARKS)
def test_every_name_is_the_benchmarks_own(name):
    assert registry.get(name).name == name


def test_an_unknown_name_prints_the_list():
    with pytest.raises(InputError, match=r"no benchmark 'vals'.* one or more of: valse, valse_pie"):
        registry.get("vals")
