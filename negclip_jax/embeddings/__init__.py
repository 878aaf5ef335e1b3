"""From an image or a text to its embedding, computed once and kept."""
