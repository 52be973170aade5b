"""Settings of the documentation's site: sphinx-build -W -n docs build/docs."""

import shutil
from importlib import metadata
from pathlib import Path

# Sphinx reads sources in its own folder only.
shutil.copytree(Path(__file__).parents[1] / "notebooks", Path(__file__).parent / "notebooks", dirs_exist_ok=True)

project = "lightning-autoassist"
author = "the lightning-autoassist authors"
copyright = author  # noqa: A001
release = metadata.version("lightning-autoassist")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinxcontrib.mermaid"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"
html_static_path: list[str] = []

nb_execution_mode = "off"  # the notebooks are executed by `make notebooks`
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

nitpicky = True
# A build without a network cannot read other packages' inventories, and types of our own that users never make by hand
# are not in the reference.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|numpy|np|pandas|pd|pytorch_lightning|lightning|collections|typing|os|pathlib|contextlib)\..*"),
    (r"py:.*", r"(concurrent|sklearn)\..*"),
    (r"py:class", r"(InstanceMemory|Labels|Lengths|PadValues|Tokens|TrainData|FloatArray|IntArray|BoolArray)"),
    (
        r"py:class",
        r"(Tensor|nn\.Module|Module|Trainer|LightningModule|optional|callable)",
    ),
    # Inherited methods are on the page of the base class.
    (r"py:(meth|attr)", r"[a-z_]+"),
    (r"py:class", r"tuple\[str"),
    (r"py:class", r"lightning_autoassist(\.[a-z_]+)+\.[A-Z]\w+"),
]
