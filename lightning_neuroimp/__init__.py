"""Which neurons matter for this group of inputs, and can the answer be believed?

The public names are imported when they are first used (PEP 562), so that importing the package costs nothing:
neither torch nor Lightning nor TensorBoard is loaded by `import lightning_neuroimp`.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "AblationFaithfulness": "ablation.settings",
    "Attribution": "importance.attributions.base",
    "ClusterTable": "results.clusters",
    "Comparison": "results.faithfulness",
    "DeletionCurve": "results.faithfulness",
    "Drift": "results.agreement",
    "Faithfulness": "results.faithfulness",
    "Importance": "results.importance",
    "KMeansClusters": "clusters.kmeans",
    "NeuronImportance": "callbacks.neuron_importance",
    "ProbeSet": "batches.probe",
    "Randomisation": "results.agreement",
    "Reliability": "results.agreement",
    "Removal": "site",
    "Results": "results.measurement",
    "Site": "site",
    "SiteActivity": "results.activity",
    "SiteBatch": "importance.attributions.site_batch",
    "Specificity": "results.faithfulness",
    "ablate": "capture.ablate",
    "ablation_faithfulness": "study.ablation",
    "deletion_curve": "study.deletion",
    "describe_samples": "batches.description",
    "list_sites": "capture.listing",
    "linear_datamodeling_score": "statistics",
    "neuron_importance": "study.importance",
    "specificity": "statistics",
    "symmetric_relevance_gain": "statistics",
    "undisturbed": "capture.isolation",
    "weight_randomisation": "study.randomisation",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
