"""Configuration of the documentation; `make docs` builds it into docs/_build/html."""

import os
import pathlib
import sys

DOCS = pathlib.Path(__file__).parent
sys.path.insert(0, str(DOCS))

import configuration  # noqa: E402  docs/configuration.py

project = "wd_plasticity"
author = "The wd_plasticity authors"
copyright = author  # the footer's line
html_title = "wd_plasticity"

extensions = ["myst_nb", "mathml"]
html_math_renderer = "mathml"
exclude_patterns = ["_build"]
html_theme = "sphinx_book_theme"
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True}
html_static_path = ["images"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

# Tutorials are run when the site is built, and a cell that fails ends the build. What
# they printed is kept in docs/_build, so that only pages that changed are run again.
nb_execution_mode = "cache"
nb_execution_cache_path = str(DOCS / "_build" / "executed")
# While writing: DRAFT=1 make docs leaves out the tutorials, which take most of the time.
nb_execution_excludepatterns = ["tutorials/*"] if os.environ.get("DRAFT") else []
suppress_warnings = ["myst-nb.lexer"] if os.environ.get("DRAFT") else []
nb_execution_timeout = 1800
nb_execution_raise_on_error = True
nb_merge_streams = True
# The commands of a tutorial are those of this environment, on the CPU.
os.environ["PATH"] = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["COLUMNS"] = "88"
os.environ["TTY_COMPATIBLE"] = "0"  # the kernel asks for colours, which a page cannot show


def setup(app):
  app.connect("builder-inited",
              lambda _: configuration.write(DOCS / "reference" / "configuration.md"))
