"""Optional packages that only some commands need: extras of this package, each with a requirements file.

A command calls `require` before it starts to work, so that a missing package is noticed first.
"""

from __future__ import annotations

from importlib.util import find_spec

from amplify_ds.errors import AmplifyError

# module: (package to install, extra it belongs to)
EXTRAS = {
    "gemmi": ("gemmi", "contacts"),
    "sklearn": ("scikit-learn", "contacts"),
    "matplotlib": ("matplotlib", "plots"),
}

CURVES = {  # matplotlib settings for plots of curves
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
    """Raise AmplifyError with the command that installs `module` if it is missing. purpose: what needs it."""
    if find_spec(module) is None:
        package, extra = EXTRAS[module]
        raise AmplifyError(f"{purpose} needs {package}, which is not installed: pip install 'amplify_ds[{extra}]'")


def pyplot():
    """Return matplotlib.pyplot, set up to draw into files. Raises AmplifyError if matplotlib is not installed."""
    require("matplotlib", "a picture")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot
