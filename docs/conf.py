"""The documentation site: `sphinx-build -W -n -b html docs OUT`. Needs no network and imports no code of foretune."""

import importlib.metadata

project = "foretune"
author = "The foretune authors"
project_copyright = "The foretune authors, Apache-2.0"
try:
    release = importlib.metadata.version("foretune")
except importlib.metadata.PackageNotFoundError:
    release = ""

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = "foretune"
html_show_sourcelink = False
