"""English for captions: inflection, vocabulary, negation, mentions, templates. No JAX."""
