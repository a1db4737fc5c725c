"""Importance of the settings of a study."""

import warnings

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances


def importance(study: optuna.Study) -> dict[str, float]:
    """Share of each setting in the differences of bits per byte; empty where there are too few trials."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # too few trials: all would be equal
        warnings.filterwarnings("ignore", message=".*to achieve low `target`")  # fewer bits are better
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            found = get_param_importances(
                study, evaluator=PedAnovaImportanceEvaluator(), target=lambda trial: trial.values[1]
            )
        except (ValueError, RuntimeError, UserWarning):
            return {}
    return {name: round(float(share), 4) for name, share in found.items()}
