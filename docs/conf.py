"""Sphinx: `make docs` builds the site and runs its notebooks; see CONTRIBUTING.md."""

import importlib.metadata

project = "negclip_jax"
author = "the authors of negclip_jax"
version = release = importlib.metadata.version("negclip-jax")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "sphinx_book_theme"
html_title = "negclip_jax"
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True}
html_show_copyright = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# Notebooks run in their own folder, in the order of their names, and again only where a cell
# changed. The first trains a CLIP: six minutes on two cores.
nb_execution_mode = "cache"
nb_execution_timeout = 1800
nb_execution_raise_on_error = True
nb_merge_streams = True
suppress_warnings = ["myst-nb.lexer"]  # of notebooks that are not run their language is not known

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_use_rtype = False


def setup(app):
    """Arrays by the name that one imports: `Float[Array, 'B D']`, not `jaxlib._jax.Array`."""

    def short(app, what, name, obj, options, *texts):
        return tuple(text and text.replace("jaxlib._jax.", "") for text in texts)

    app.connect("autodoc-process-signature", short)
