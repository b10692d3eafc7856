"""Arguments are validated at one border: plain types, bounds, and what would work instead."""

import numpy as np
import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_neuroimp import AblationFaithfulness, KMeansClusters, NeuronImportance, ProbeSet, Site
from lightning_neuroimp.errors import InvalidArgument, NeuroimpError

# the types in signatures are checked under pytest only: here values of other types are passed on purpose
pytestmark = pytest.mark.usefixtures("unchecked")


def test_numpy_numbers_and_lists_are_taken():
    assert KMeansClusters(np.int64(8)) == KMeansClusters(8)
    assert type(KMeansClusters(np.int64(8)).n_clusters) is int
    assert KMeansClusters([2, 4]) == KMeansClusters((2, 4))
    assert KMeansClusters([np.int32(2), np.int64(4)]).n_clusters == (2, 4)
    assert AblationFaithfulness(n_random=np.int32(39)).n_random == 39
    assert AblationFaithfulness(fractions=np.array([0.1, 0.5])).fractions == (0.1, 0.5)
    assert AblationFaithfulness(best_order=np.bool_(True)).best_order is True
    assert Site("1", call=np.int64(2)) == Site("1", call=2)
    NeuronImportance("1", max_samples=np.int64(100), seed=np.int64(3), every_n_epochs=np.int32(2))


@pytest.mark.parametrize(
    ("kind", "options", "phrase"),
    [
        (AblationFaithfulness, {"n_random": 20.5}, "n_random must be an integer at least 19, got 20.5"),
        (AblationFaithfulness, {"n_random": 20.0}, "n_random must be an integer"),
        (AblationFaithfulness, {"n_random": True}, "n_random must be an integer"),
        (AblationFaithfulness, {"n_random": "39"}, "n_random must be an integer at least 19, got '39'"),
        (AblationFaithfulness, {"max_samples": 10.5}, "max_samples must be an integer at least 1, got 10.5"),
        (AblationFaithfulness, {"max_samples": True}, "max_samples must be an integer"),
        (AblationFaithfulness, {"every_n_epochs": 1.5}, "every_n_epochs must be an integer"),
        (AblationFaithfulness, {"best_order": 1}, "best_order must be True or False, got 1"),
        (AblationFaithfulness, {"specificity": "yes"}, "specificity must be True or False, got 'yes'"),
        (AblationFaithfulness, {"fractions": 0.1}, "fractions must be numbers above 0 and up to 1, got 0.1"),
        (AblationFaithfulness, {"fractions": "0.1"}, "fractions must be numbers above 0 and up to 1, got '0.1'"),
        (AblationFaithfulness, {"fractions": [0.1, "half"]}, "each of fractions must be a number above 0 and up to 1"),
        (AblationFaithfulness, {"fractions": [float("nan")]}, "each of fractions must be a number"),
        (AblationFaithfulness, {"max_overhead": "none"}, "max_overhead, where it is not None, must be a number"),
        (AblationFaithfulness, {"max_overhead": float("inf")}, "max_overhead, where it is not None, must be a number"),
        (KMeansClusters, {"n_clusters": 8.0}, "n_clusters must be an integer at least 2, got 8.0"),
        (KMeansClusters, {"n_clusters": True}, "n_clusters must be an integer"),
        (KMeansClusters, {"n_clusters": [2.5, 4]}, "each end of n_clusters must be an integer, got 2.5"),
        (KMeansClusters, {"n_clusters": [2, 3, 4]}, r"a pair \(least, most\) from 2 to 20"),
        (KMeansClusters, {"n_clusters": "8"}, "n_clusters must be an integer"),
        (KMeansClusters, {"scale": "standrad"}, "scale must be 'standard', 'l2' or None, got 'standrad'; did you"),
        (KMeansClusters, {"n_components": 1.5}, "n_components must be an integer at least 1, got 1.5"),
        (Site, {"name": "1", "call": 1.0}, "call of a site must be an integer at least 0, got 1.0"),
        (Site, {"name": "1", "call": -1}, "call of a site must be at least 0, got -1; 0 is the first call"),
        (Site, {"name": "1", "group": None}, "group of a site must be an integer at least 1, got None"),
        (Site, {"name": "1", "side": "inputs"}, "side of a site must be 'output' or 'input', got 'inputs'; did you"),
    ],
)
def test_what_is_no_valid_value_is_refused(kind, options, phrase):
    with pytest.raises(InvalidArgument, match=phrase) as error:
        kind(**options)
    assert isinstance(error.value, ValueError)
    assert isinstance(error.value, NeuroimpError)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        ({"max_samples": 10.5}, "max_samples must be an integer"),
        ({"max_samples": True}, "max_samples must be an integer"),
        ({"max_bytes": 1e9}, "max_bytes must be an integer"),
        ({"every_n_epochs": 1.5}, "every_n_epochs must be an integer"),
        ({"seed": 1.5}, "seed must be an integer from 0 to 4294967295, got 1.5"),
        ({"seed": -1}, "seed must be from 0 to 4294967295, got -1"),
        ({"batch_size": 2.5}, "batch_size must be an integer at least 1, got 2.5"),
        ({"target_class": 1.5}, "target_class, where it is the number of a class, must be an integer"),
        ({"target_class": "predictd"}, "target_class must be .*got 'predictd'; did you mean 'predicted'"),
        ({"clusters": "label"}, "clusters must be .*got 'label'; did you mean 'labels'"),
        ({"target": "probabilty"}, "target must be .*got 'probabilty'; did you mean 'probability'"),
        ({"attribution": "gradient_x_activations"}, "did you mean 'gradient_x_activation'"),
        ({"attribution": 3}, "attribution must be among"),
        ({"forward_fn": "forward"}, "forward_fn must be a callable"),
        ({"describe_sample": 3}, "describe_sample must be a callable"),
        ({"groups": 3}, r"groups must be a callable \(batch\) -> one integer or string per sample, got 3"),
        ({"stratify": "labels"}, "stratify must be True, False or a callable"),
        ({"faithfulness": True}, r"faithfulness must be AblationFaithfulness\(...\) or None, got True"),
        ({"name": 3}, "name must be of letters, digits"),
        ({"on_error": None}, "on_error must be 'warn' or 'raise', got None"),
        ({"baseline": float("nan")}, "baseline must be a number"),
        ({"baseline": True}, "baseline must be 'zero', 'mean', 'resample'"),
        ({"classes": []}, "classes must be a list of class numbers or names"),
        ({"classes": [1.5]}, "a class, where it is no name, must be an integer"),
        ({"class_names": 3}, "class_names must be a list"),
    ],
)
def test_the_callback_refuses_them_in_its_constructor(options, phrase):
    with pytest.raises(MisconfigurationException, match=phrase) as error:
        NeuronImportance(**({"layers": "1"} | options))
    assert str(error.value).startswith("NeuronImportance: ")


def test_probe_sets_refuse_them_too():
    with pytest.raises(InvalidArgument, match="max_samples must be an integer"):
        ProbeSet.from_batches([], max_samples=2.5)
