"""Which neurons matter for this group of inputs, and can the answer be trusted?

The rooms, in the order in which the data pass them: `batches` (a probe set is drawn), `capture` (the model is run on
it, looked into, and run without neurons), `clusters` (which samples belong together), `importance` (neurons are
scored), `ablation` (the scores are checked), `results` (what was found, and why scores are weak), `display` (text,
figures, TensorBoard). `study` asks the questions, step by step; `callbacks` asks them while a Trainer trains.

The public names are imported when they are first used (PEP 562), so that importing the package costs nothing:
neither torch nor Lightning nor TensorBoard is loaded by `import lightning_neuroimp`. Type checkers see the real names.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_neuroimp.ablation.settings import AblationFaithfulness
    from lightning_neuroimp.batches.description import describe_samples
    from lightning_neuroimp.batches.probe import ProbeSet
    from lightning_neuroimp.callbacks.neuron_importance import NeuronImportance
    from lightning_neuroimp.capture.ablate import ablate
    from lightning_neuroimp.capture.baselines import ReferenceInput
    from lightning_neuroimp.capture.isolation import undisturbed
    from lightning_neuroimp.capture.listing import list_sites
    from lightning_neuroimp.clusters.kmeans import KMeansClusters
    from lightning_neuroimp.display.frames import load_history
    from lightning_neuroimp.importance.attributions.blockwise import BlockwiseGradient
    from lightning_neuroimp.importance.attributions.captum import CaptumAttribution
    from lightning_neuroimp.importance.attributions.input_path import Conductance, InternalInfluence
    from lightning_neuroimp.importance.attributions.path import IntegratedGradients, MaskedGradient
    from lightning_neuroimp.importance.attributions.progressive import ProgressiveGradient
    from lightning_neuroimp.importance.attributions.registry import Attribution
    from lightning_neuroimp.importance.attributions.regression import Regression
    from lightning_neuroimp.importance.attributions.shapley import Shapley
    from lightning_neuroimp.importance.attributions.site_batch import SiteBatch
    from lightning_neuroimp.results.activity import SiteActivity
    from lightning_neuroimp.results.agreement import Drift, Randomisation, Reliability
    from lightning_neuroimp.results.change import Change, Changes, compare
    from lightning_neuroimp.results.clusters import ClusterTable
    from lightning_neuroimp.results.faithfulness import Comparison, DeletionCurve, Faithfulness, Specificity
    from lightning_neuroimp.results.findings.finding import Finding
    from lightning_neuroimp.results.importance import Importance
    from lightning_neuroimp.results.measurement import Results
    from lightning_neuroimp.site import Removal, Site
    from lightning_neuroimp.statistics import linear_datamodeling_score, specificity, symmetric_relevance_gain
    from lightning_neuroimp.study.ablation import ablation_faithfulness
    from lightning_neuroimp.study.deletion import deletion_curve
    from lightning_neuroimp.study.importance import neuron_importance
    from lightning_neuroimp.study.randomisation import weight_randomisation

__version__ = "0.1.0"

__all__ = [
    "AblationFaithfulness",
    "Attribution",
    "BlockwiseGradient",
    "CaptumAttribution",
    "Change",
    "Changes",
    "ClusterTable",
    "Comparison",
    "Conductance",
    "DeletionCurve",
    "Drift",
    "Faithfulness",
    "Finding",
    "Importance",
    "IntegratedGradients",
    "InternalInfluence",
    "KMeansClusters",
    "MaskedGradient",
    "NeuronImportance",
    "ProbeSet",
    "ProgressiveGradient",
    "Randomisation",
    "ReferenceInput",
    "Regression",
    "Reliability",
    "Removal",
    "Results",
    "Shapley",
    "Site",
    "SiteActivity",
    "SiteBatch",
    "Specificity",
    "ablate",
    "ablation_faithfulness",
    "compare",
    "deletion_curve",
    "describe_samples",
    "linear_datamodeling_score",
    "list_sites",
    "load_history",
    "neuron_importance",
    "specificity",
    "symmetric_relevance_gain",
    "undisturbed",
    "weight_randomisation",
]

_HOME = {
    "AblationFaithfulness": "ablation.settings",
    "Attribution": "importance.attributions.registry",
    "BlockwiseGradient": "importance.attributions.blockwise",
    "CaptumAttribution": "importance.attributions.captum",
    "Change": "results.change",
    "Changes": "results.change",
    "ClusterTable": "results.clusters",
    "Comparison": "results.faithfulness",
    "Conductance": "importance.attributions.input_path",
    "DeletionCurve": "results.faithfulness",
    "Drift": "results.agreement",
    "Faithfulness": "results.faithfulness",
    "Finding": "results.findings.finding",
    "Importance": "results.importance",
    "IntegratedGradients": "importance.attributions.path",
    "InternalInfluence": "importance.attributions.input_path",
    "KMeansClusters": "clusters.kmeans",
    "MaskedGradient": "importance.attributions.path",
    "NeuronImportance": "callbacks.neuron_importance",
    "ProbeSet": "batches.probe",
    "ProgressiveGradient": "importance.attributions.progressive",
    "Randomisation": "results.agreement",
    "ReferenceInput": "capture.baselines",
    "Regression": "importance.attributions.regression",
    "Reliability": "results.agreement",
    "Removal": "site",
    "Results": "results.measurement",
    "Shapley": "importance.attributions.shapley",
    "Site": "site",
    "SiteActivity": "results.activity",
    "SiteBatch": "importance.attributions.site_batch",
    "Specificity": "results.faithfulness",
    "ablate": "capture.ablate",
    "ablation_faithfulness": "study.ablation",
    "compare": "results.change",
    "deletion_curve": "study.deletion",
    "describe_samples": "batches.description",
    "linear_datamodeling_score": "statistics",
    "list_sites": "capture.listing",
    "load_history": "display.frames",
    "neuron_importance": "study.importance",
    "specificity": "statistics",
    "symmetric_relevance_gain": "statistics",
    "undisturbed": "capture.isolation",
    "weight_randomisation": "study.randomisation",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
