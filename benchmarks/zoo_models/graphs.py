"""Classifiers of graphs from `torch_geometric`, in packed batches."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .entry import CLASSES, Entry, Inputs, N, Place

NODES = "the nodes of all graphs are in one row"


class GraphClassifier(nn.Module):
    """Convolve twice on a graph, pool its nodes, and classify it."""

    def __init__(self, convolution: Callable[[int, int], nn.Module], pool: nn.Module) -> None:
        super().__init__()
        self.convs = nn.ModuleList([convolution(5, 10), convolution(10, 12)])
        self.act, self.pool = nn.ReLU(), pool
        self.readout = nn.Sequential(nn.Linear(12, 14), nn.GELU(), nn.LayerNorm(14), nn.Linear(14, CLASSES))

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """Return logits.

        Args:
            x: (node, 5), of all graphs.
            edge_index: (2, edge).
            batch: the graph of each node.
        """
        for conv in self.convs:
            x = self.act(conv(x, edge_index))
        return self.readout(self.pool(x, batch))


def made(kind: str, pool: str, **options: Any) -> Callable[[], nn.Module]:
    """Return a function that makes a classifier with convolutions and an aggregation of `torch_geometric.nn`."""

    def make() -> nn.Module:
        from torch_geometric import nn as layers

        def convolution(inputs: int, outputs: int) -> nn.Module:
            if kind == "GINConv":
                return layers.GINConv(nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, outputs)))
            return getattr(layers, kind)(inputs, outputs, **options)

        return GraphClassifier(convolution, getattr(layers, pool)())

    return make


def graphs() -> tuple[Inputs, Tensor | None]:
    """Return random graphs of several sizes, packed."""
    from torch_geometric.data import Batch, Data

    generator = torch.Generator().manual_seed(1)
    found = []
    for number in range(N):
        size = 4 + number % 3
        edges = torch.randint(size, (2, 3 * size), generator=generator)
        x = torch.randn(size, 5, generator=generator, dtype=torch.float64)
        found.append(Data(x=x, edge_index=edges, number=torch.tensor([number])))
    return Batch.from_data_list(found), None


def take_graph(inputs: Inputs, sample: int) -> Inputs:
    """Return one graph, twice, packed."""
    from torch_geometric.data import Batch

    graph = inputs.to_data_list()[sample]
    return Batch.from_data_list([graph, graph.clone()])


def graph_logits(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return the logits of packed graphs."""
    return model(inputs.x, inputs.edge_index, inputs.batch)


def labelled(inputs: Inputs, labels: Tensor) -> Any:
    """Return packed graphs with labels."""
    from torch_geometric.data import Batch

    return Batch.from_data_list(
        [graph.clone().update({"y": labels[row : row + 1]}) for row, graph in enumerate(inputs.to_data_list())]
    )


def forward_fn(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Return logits and labels of packed graphs, as the package needs them."""
    return model(batch.x, batch.edge_index, batch.batch), batch.y


def entry(name: str, make: Callable[[], nn.Module], *places: Place) -> Entry:
    """Return an entry of `torch_geometric`."""
    return Entry(
        name,
        "torch_geometric",
        make,
        graphs,
        places,
        logits=graph_logits,
        take=take_graph,
        batch=labelled,
        key=lambda batch: batch.number,
        forward_fn=forward_fn,
    )


ENTRIES = [
    entry(
        "GCN",
        made("GCNConv", "MeanAggregation"),
        Place("convs.0", 1, 10, refused=NODES),
        Place("pool", 1, 12),
        Place("readout.0", 1, 14),
        Place("readout.1", 1, 14),
    ),
    entry(
        "GAT",
        made("GATConv", "MaxAggregation", heads=2, concat=False),
        Place("pool", 1, 12),
        Place("readout.1", 1, 14),
        Place("readout.2", 1, 14),
    ),
    entry(
        "GraphSAGE",
        made("SAGEConv", "SumAggregation"),
        Place("pool", 1, 12),
        Place("readout.0", 1, 14),
        Place("readout", 1, CLASSES),
    ),
    entry(
        "GIN",
        made("GINConv", "SumAggregation"),
        Place("pool", 1, 12),
        Place("readout.0", 1, 14),
        Place("readout.2", 1, 14),
    ),
]
