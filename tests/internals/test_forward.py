"""Running a model on a batch: whose mistake an error is, and what is not looked at twice."""

import pytest
import torch
from torch import nn

from lightning_neuroimp.capture.forward import ForwardFn, call_model, forward_logits
from lightning_neuroimp.capture.targets import explained_classes
from lightning_neuroimp.errors import InvalidArgument, NeuroimpError

X, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])


class Raising(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


@pytest.mark.parametrize("error", [ValueError("a"), KeyError("a"), TypeError("a"), NotImplementedError("a")])
def test_mistakes_of_the_model_and_of_forward_fn_are_invalid_arguments(error):
    with pytest.raises(InvalidArgument, match=rf"^Raising was called with a Tensor .* {type(error).__name__}") as found:
        forward_logits(Raising(error), (X, Y), None)
    assert found.value.__cause__ is error
    with pytest.raises(InvalidArgument, match=rf"^forward_fn failed with {type(error).__name__}: ") as found:
        forward_logits(Raising(error), (X, Y), lambda model, batch: (model(batch[0]), batch[1]))
    assert found.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("kernel"), MemoryError(), NeuroimpError("ours")])
def test_what_is_no_mistake_passes(error):
    for forward_fn in (None, lambda model, batch: (model(batch[0]), batch[1])):
        with pytest.raises(type(error)) as found:
            forward_logits(Raising(error), (X, Y), forward_fn)
        assert found.value is error


def test_the_mask_is_that_of_the_batch_before_forward_fn_changes_it():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]])
    batch = {"x": X.clone(), "attention_mask": mask.clone(), "label": Y}

    def forward_fn(model, batch):
        batch.pop("attention_mask").zero_()
        return model(batch["x"]), batch["label"]

    assert torch.equal(forward_logits(nn.Identity(), batch, forward_fn).tokens, mask.bool())


def test_values_are_validated_only_where_that_is_asked_for():
    probabilities, labels = X.softmax(1), torch.tensor([0, 1, 7, 0])
    for logits, targets in ((probabilities, Y), (X, labels)):
        with pytest.raises(InvalidArgument):
            forward_logits(nn.Identity(), (logits, targets), None)
        assert torch.equal(forward_logits(nn.Identity(), (logits, targets), None, validate=False).logits, logits)
    prediction = forward_logits(nn.Identity(), (X, labels), None, validate=False)
    assert torch.equal(explained_classes(prediction.logits, prediction.labels, "predicted"), X.argmax(1))


def test_any_callable_is_a_forward_fn():
    assert isinstance(lambda model, batch: (model(batch), Y), ForwardFn)
    assert not isinstance("forward", ForwardFn)


def test_messages_stay_short():
    """A batch with many fields, and a model that is called with them."""

    class Many(nn.Module):
        def forward(self, input_ids, token_type_ids, attention_mask, position_ids):
            raise ValueError("x" * 500)

    names = ("input_ids", "token_type_ids", "attention_mask", "position_ids")
    with pytest.raises(InvalidArgument) as found:
        call_model(Many(), dict.fromkeys(names, X))
    assert len(str(found.value)) < 300
