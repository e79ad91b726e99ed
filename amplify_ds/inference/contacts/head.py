"""The head: a logistic regression from attention maps to contacts, and its file.

The features are the corrected maps of all layers and attention heads (attention_maps.py). The L1 penalty selects a few
of them. A few proteins are enough to fit it (20 in Rao et al. 2021), because the maps already contain the contacts. C
is the inverse strength of the penalty in scikit-learn's definition, 0.15 in that paper. The solver is liblinear, which
also penalises the intercept slightly; we do not know whether the published fits used it.

The file is JSON. It contains the fingerprint of the model's weights, and a head is refused for other weights.
"""

from __future__ import annotations

import inspect
import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amplify_ds.errors import AmplifyError
from amplify_ds.files import write_json
from amplify_ds.inference.contacts.attention_maps import require_float32
from amplify_ds.inference.model import Reader
from amplify_ds.structured import read_json

C = 0.15
FORMAT = "amplify_ds contact head, version 1"
_ITERATIONS = 1000
_KEYS = {"model": str, "fingerprint": str, "intercept": float, "weights": list, "fit": dict}


@dataclass(frozen=True)
class Head:
    """A fitted head. weights: [layers][heads]. model, fingerprint: folder or hub name of the model that it was fitted
    to, and the hash of its weights. fit: the data and settings of the fit."""

    model: str
    fingerprint: str
    intercept: float
    weights: list[list[float]]
    fit: dict[str, Any]

    def check_model(self, reader: Reader, name: str = "this head") -> None:
        """Raises AmplifyError if `reader` is not in float32 or has other weights than the model of this head."""
        require_float32(reader)
        config = reader.model.config
        fitted, given = (
            (len(self.weights), len(self.weights[0])),
            (config.num_hidden_layers, config.num_attention_heads),
        )
        if fitted != given:
            raise AmplifyError(
                f"{name}: was fitted to a model with {fitted[0]} layers of {fitted[1]} heads, this model has "
                f"{given[0]} layers of {given[1]} heads; fit a head to this model"
            )
        if reader.fingerprint() != self.fingerprint:
            raise AmplifyError(
                f"{name}: was fitted to the weights of {self.model}, this model has other weights; fit a head to this "
                "model"
            )


def fit(features: np.ndarray, contacts: np.ndarray, inverse_strength: float, seed: int) -> tuple[np.ndarray, float]:
    """Fit the regression and return (weights float64 [F], intercept).

    features: [P, F]; float64 is not copied. contacts: bool [P]. Raises AmplifyError if all pairs or none are in
    contact, or if the solver does not converge.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if contacts.all() or not contacts.any():
        contact_share = "all" if len(contacts) and contacts.all() else "none"
        raise AmplifyError(
            f"{contact_share} of {len(contacts):,} pairs are in contact, so no head can be fitted; give other proteins"
        )
    # Since 1.8 scikit-learn sets the penalty by its share of L1; older versions (Python 3.10) by its name.
    by_name = inspect.signature(LogisticRegression).parameters["penalty"].default != "deprecated"
    penalty = {"penalty": "l1"} if by_name else {"l1_ratio": 1}
    model = LogisticRegression(
        C=inverse_strength, solver="liblinear", random_state=seed, max_iter=_ITERATIONS, **penalty
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(features, contacts)
        except ConvergenceWarning:
            raise AmplifyError(
                f"the regression did not converge in {_ITERATIONS:,} iterations; try a smaller --inverse-strength"
            ) from None
    return model.coef_[0], float(model.intercept_[0])


def save(head: Head, path: Path) -> None:
    write_json(path, {"format": FORMAT, **asdict(head)})


def read(path: Path) -> Head:
    """Read a head. Raises AmplifyError if the file is missing or not a head."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise AmplifyError(f"{path}: there is no such file; make one with `amplify_ds.contacts fit`") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise AmplifyError(f"{path}: not a contact head of this version; make one with `amplify_ds.contacts fit`")
    invalid = [key for key, kind in _KEYS.items() if not isinstance(content.get(key), kind)]
    invalid += sorted(content.keys() - _KEYS.keys())
    if not invalid and not _is_matrix(content["weights"], content["intercept"]):
        invalid = ["weights"]
    if not invalid and not isinstance(content["fit"].get("proteins"), dict):
        invalid = ["fit.proteins"]
    if invalid:
        raise AmplifyError(f"{path}: damaged, invalid values: {', '.join(invalid)}; fit the head again")
    return Head(**content)


def _is_matrix(rows: list, intercept: float) -> bool:
    """Return whether the rows have equal lengths, and the values and the intercept are finite floats."""
    if not rows or not all(isinstance(row, list) and row and len(row) == len(rows[0]) for row in rows):
        return False
    return all(type(value) is float and math.isfinite(value) for row in [*rows, [intercept]] for value in row)
