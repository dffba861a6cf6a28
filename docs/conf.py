"""Sphinx's settings for the site; ``make docs`` builds it from the pages of this folder.

Nothing is downloaded while it builds. Names of other projects (torch, NumPy, optax, Python) are
found in ``inventories/``, which list the names that these pages use and no others: a name that is
not listed there is an error, as every warning is.
"""

import os
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
# sphinx-build -j starts processes by fork, and torch's threads do not survive that.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import command_line  # noqa: E402 - beside this file
import docstrings  # noqa: E402

import svag  # noqa: E402

project = "svag"
version = release = svag.__version__
author = "the svag authors"
html_title = "svag: Adam taken apart"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
templates_path = ["templates"]
exclude_patterns = ["gallery/README.rst", "sg_execution_times.rst", "gallery_pages/**/*.py"]
highlight_language = "none"
smartquotes_action = "D"
nitpicky = True

# Markdown: headings are link targets as on GitHub.
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]

# The reference: one page for each public name, made from its docstring.
autosummary_generate = True
autosummary_imported_members = True
autodoc_default_options = {"member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 60
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_custom_sections = [("Attributes", "params_style")]  # called so, not "Variables"
add_module_names = False
toc_object_entries = False

intersphinx_mapping = {
    name: (url, str(HERE / "inventories" / f"{name}.txt"))
    for name, url in {
        "python": "https://docs.python.org/3/",
        "numpy": "https://numpy.org/doc/stable/",
        "torch": "https://docs.pytorch.org/docs/stable/",
        "optax": "https://optax.readthedocs.io/en/latest/",
    }.items()
}

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "gallery_pages",
    "filename_pattern": "plot_",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1e9,
    "write_computation_times": False,
    "remove_config_comments": True,
    "matplotlib_animations": False,
    "image_srcset": ["2x"],
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
}

html_theme = "furo"
html_static_path = ["static", "gallery/explorer"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#a3480f", "color-brand-content": "#a3480f"},
    "dark_css_variables": {"color-brand-primary": "#f0a35e", "color-brand-content": "#f0a35e"},
}
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
linkcheck_ignore = [r"https://doi\.org/.*"]

warnings.filterwarnings("ignore", message=".*FigureCanvasAgg is non-interactive.*")


def setup(app):  # type: ignore[no-untyped-def]
    """Connect what makes docstrings and links fit the site."""
    docstrings.connect(app)
    (HERE / "gallery" / "explorer").mkdir(exist_ok=True)
    command_line.write(HERE / "reference" / "names" / "command-line.inc")
