"""The regression from attention maps to contacts, and its file.

Logistic regression on the corrected maps of all layers and heads (attention_maps.py), with an L1 penalty, so that it
chooses among the heads; fitted on a few proteins (20 in Rao et al. 2021: the maps hold the contacts already, the
regression finds which of them do). C is the inverse strength of the penalty, 0.15 there, as scikit-learn counts it.
Solver: liblinear. That the published fits used this solver is not known here; it penalises the intercept too, a
little.

The file is JSON: a head is refused for another model than its own, by the fingerprint of the weights.
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
    """weights: [layers][heads]. model: where it was when this was fitted. fit: from what and how."""

    model: str
    fingerprint: str
    intercept: float
    weights: list[list[float]]
    fit: dict[str, Any]

    def check_model(self, reader: Reader, name: str = "this head") -> None:
        """Raises AmplifyError unless it was fitted to the very weights of `reader`, which is in float32."""
        require_float32(reader)
        config = reader.model.config
        own, other = (len(self.weights), len(self.weights[0])), (config.num_hidden_layers, config.num_attention_heads)
        if own != other:
            raise AmplifyError(
                f"{name}: was fitted to a model of {own[0]} layers of {own[1]} heads, this one has {other[0]} of "
                f"{other[1]}; fit a head to it"
            )
        if reader.fingerprint() != self.fingerprint:
            raise AmplifyError(
                f"{name}: was fitted to other weights than these, those of {self.model}; fit a head to this model"
            )


def fit(features: np.ndarray, contacts: np.ndarray, inverse_strength: float, seed: int) -> tuple[np.ndarray, float]:
    """(weights float64 [F], intercept) from features [P, F] (float64 is not copied) and contacts bool [P].

    Raises AmplifyError when the pairs are all in contact or none is, and when the solver does not converge.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if contacts.all() or not contacts.any():
        which = "all" if len(contacts) and contacts.all() else "none"
        raise AmplifyError(
            f"of {len(contacts):,} pairs {which} are in contact: nothing can be fitted; give other proteins"
        )
    # From 1.8 on scikit-learn names the penalty by its share of L1; before (Python 3.10) by its name.
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
    """Raises AmplifyError for a file that is no head."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise AmplifyError(f"{path}: there is no such file; make one with `amplify_ds.contacts fit`") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise AmplifyError(f"{path}: is no contact head of this version; make one with `amplify_ds.contacts fit`")
    wrong = [key for key, kind in _KEYS.items() if not isinstance(content.get(key), kind)]
    wrong += sorted(content.keys() - _KEYS.keys())
    if not wrong and not _is_matrix(content["weights"], content["intercept"]):
        wrong = ["weights"]
    if not wrong and not isinstance(content["fit"].get("proteins"), dict):
        wrong = ["fit.proteins"]
    if wrong:
        raise AmplifyError(f"{path}: is damaged: {', '.join(wrong)}; fit it again")
    return Head(**content)


def _is_matrix(rows: list, intercept: float) -> bool:
    if not rows or not all(isinstance(row, list) and row and len(row) == len(rows[0]) for row in rows):
        return False
    return all(type(value) is float and math.isfinite(value) for row in [*rows, [intercept]] for value in row)
