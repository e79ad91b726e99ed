"""Packages that only some commands need: extras of the package, in a requirements file each (pyproject.toml).

A command that needs one asks for it before it begins to work, so that nothing is computed for a picture that cannot be
drawn.
"""

from __future__ import annotations

from importlib.util import find_spec

from amplify_ds.errors import AmplifyError

# What is imported -> the package that is installed, and the extra that it belongs to.
EXTRAS = {
    "gemmi": ("gemmi", "contacts"),
    "sklearn": ("scikit-learn", "contacts"),
    "matplotlib": ("matplotlib", "plots"),
}

STYLE = {  # of curves, matplotlib's names
    "text.parse_math": False,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "savefig.dpi": 200,
}


def require(module: str, purpose: str) -> None:
    """Raise AmplifyError, which says how to install it, unless `module` can be imported. `purpose` needs it."""
    if find_spec(module) is None:
        package, extra = EXTRAS[module]
        raise AmplifyError(f"{purpose} needs {package}, which is not installed: pip install 'amplify_ds[{extra}]'")


def pyplot():
    """matplotlib.pyplot, drawing into files. Raises AmplifyError where matplotlib is not installed."""
    require("matplotlib", "a picture")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot
