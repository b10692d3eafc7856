"""Which neurons matter for this group of inputs, and can the answer be believed?

The public names are imported when they are first used (PEP 562), so that importing the package costs nothing:
neither torch nor Lightning nor TensorBoard is loaded by `import lightning_neuroimp`.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "AblationFaithfulness": "faithfulness",
    "Attribution": "attribution",
    "ClusterTable": "results",
    "Comparison": "results",
    "DeletionCurve": "results",
    "Drift": "results",
    "Faithfulness": "results",
    "Importance": "results",
    "KMeansClusters": "clusters",
    "NeuronImportance": "callbacks",
    "ProbeSet": "probe",
    "Randomisation": "results",
    "Reliability": "results",
    "Removal": "results",
    "Results": "results",
    "Site": "results",
    "SiteActivity": "results",
    "SiteBatch": "attribution",
    "Specificity": "results",
    "ablate": "intervention",
    "ablation_faithfulness": "ablation",
    "deletion_curve": "ablation",
    "describe_samples": "exemplars",
    "list_sites": "listing",
    "linear_datamodeling_score": "statistics",
    "neuron_importance": "study",
    "specificity": "statistics",
    "symmetric_relevance_gain": "statistics",
    "undisturbed": "isolation",
    "weight_randomisation": "randomisation",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
