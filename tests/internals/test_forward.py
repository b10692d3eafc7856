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


NO_MISTAKES = [
    RuntimeError("a user's own"),
    RuntimeError("DataLoader worker (pid 1) exited unexpectedly"),
    MemoryError(),
    NeuroimpError("ours"),
    torch.OutOfMemoryError("no memory"),
    RuntimeError("MPS backend out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700),
    torch.distributed.DistBackendError("NCCL error"),
    torch.distributed.DistNetworkError("The client socket has timed out"),
    RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"),
    RuntimeError("Watchdog caught collective operation timeout"),
    RuntimeError("a leaf Variable that requires grad is being used in an in-place operation."),
    RuntimeError("Inference tensors cannot be saved for backward."),
    RecursionError("maximum recursion depth exceeded"),
    OSError("disk"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", NO_MISTAKES, ids=lambda error: f"{type(error).__name__} {error}"[:40])
def test_what_is_no_mistake_passes(error):
    for forward_fn in (None, lambda model, batch: (model(batch[0]), batch[1])):
        with pytest.raises(type(error)) as found:
            forward_logits(Raising(error), (X, Y), forward_fn)
        assert found.value is error


class Own(RuntimeError):
    """Not known to be anybody's mistake."""


CALLS = {
    "shapes": (nn.Linear(5, 2), X, "mat1 and mat2 shapes cannot be multiplied (4x3 and 5x2)"),
    "types": (nn.Linear(3, 2), X.double(), "must have the same dtype"),
    "channels": (nn.Conv2d(3, 2, 3), torch.zeros(4, 8, 8, 3), "Given groups=1, weight of size [2, 3, 3, 3]"),
    "axes": (nn.Conv1d(3, 2, 3), torch.zeros(4, 3, 8, 8), "Expected 2D (unbatched) or 3D (batched) input"),
    "integers": (nn.Embedding(9, 2), X, "Expected tensor for argument"),
    "bytes": (nn.Linear(3, 2), torch.zeros(4, 3, dtype=torch.uint8), "dtype"),
    "devices": (nn.Linear(3, 2, device="meta"), X, "device"),
    "batch norm": (nn.BatchNorm1d(4).eval(), X, "running_mean should contain 3 elements not 4"),
    "states": (nn.LSTM(4, 2, batch_first=True), X[:, None], "must be equal to input_size"),
    "halves": (nn.Linear(3, 2).half(), X, "dtype"),
    "views": (nn.Unflatten(1, (2, 2)), X, "unflatten"),
    "scripted": (None, X, "mat1 and mat2"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", CALLS)
def test_inputs_that_do_not_fit_are_invalid_arguments(kind):
    model, x, text = CALLS[kind]
    model = torch.jit.script(nn.Linear(5, 2)) if model is None else model
    for forward_fn in (None, lambda model, batch: (model(batch[0]), batch[1])):
        with pytest.raises(InvalidArgument) as found:
            forward_logits(model, (x, Y), forward_fn)
        began = (
            f"{type(model).__name__} was called with a Tensor of shape" if forward_fn is None else "forward_fn failed"
        )
        for phrase in (began, text[:40], "if validation_step prepares the inputs, do the same in forward_fn"):
            assert phrase in str(found.value)
        assert len(str(found.value)) < 300
        assert found.value.__cause__ is not None


def test_a_kind_of_runtime_error_that_is_not_known_passes():
    with pytest.raises(Own):
        forward_logits(Raising(Own("a")), (X, Y), None)


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


@pytest.mark.parametrize("error", [ValueError("x" * 500), RuntimeError("shapes " + "x" * 500)])
def test_messages_stay_short(error):
    """A batch with many fields, and a model that is called with them."""

    class Many(nn.Module):
        def forward(self, input_ids, token_type_ids, attention_mask, position_ids):
            raise error

    names = ("input_ids", "token_type_ids", "attention_mask", "position_ids")
    with pytest.raises(InvalidArgument) as found:
        call_model(Many(), dict.fromkeys(names, X))
    assert len(str(found.value)) < 300
