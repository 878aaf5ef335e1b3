"""Text-to-image: a pipeline's text encoder replaced, pictures drawn, judged and shown."""
