"""The engine without a model: what the grammar can write, in one place.

`rewrite_by_template` adds an absence to a caption (`phrasing`), `merge_question` adds the answer
"no" to a yes/no question (`questions`), `foil` says the false (`foils`).
"""

from negclip_jax.language.foils import foil
from negclip_jax.language.phrasing import rewrite_by_template
from negclip_jax.language.questions import merge_question

__all__ = ["foil", "merge_question", "rewrite_by_template"]
