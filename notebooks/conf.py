"""Settings of the manual: `sphinx-build -W notebooks SITE` makes it of these pages and notebooks.

The notebooks are shown as they are stored; `execute.py` runs them. Nothing on a page comes from
another server.
"""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

project = "flowlab"
author = "The flowlab developers"
copyright = "The flowlab developers"
release = version = metadata.version("flowlab-jax")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "_mathml", "_reference"]

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

# Docstrings have names in single backticks, and sections that Google's style does not know.
default_role = "code"
napoleon_custom_sections = ["Source", "Accuracy", "Shapes"]
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_default_options = {"no-value": True}  # the catalogue of losses has a page of its own
add_module_names = False
python_maximum_signature_line_length = 80

# A block without a language is a command, or what something printed.
highlight_language = "none"
html_theme = "furo"
html_title = "flowlab"
html_copy_source = False
html_math_renderer = "mathml"
