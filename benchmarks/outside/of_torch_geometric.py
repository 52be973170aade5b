"""torch-geometric: graphs of different sizes, joined to one large graph a batch by its own loader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.outside.cases import NUM_INSTANCES, Setup, case, cases, integers, normal
from benchmarks.outside.steps import Step, UnifiedStep

PACKAGE = "torch-geometric"
WIDTH, CLASSES = 4, 3
NETWORKS = ("EdgeCNN", "GAT", "GCN", "GIN", "GraphSAGE")


def _graphs(labels_of: str) -> list[Any]:
    """Rings of 3 to 7 nodes with one label a graph, a number a graph, or a label a node."""
    from torch_geometric.data import Data

    sizes, features = 3 + integers(5), normal(7, WIDTH)
    labels, numbers, of_nodes = integers(CLASSES), normal(1), integers(CLASSES, 7)
    graphs = []
    for index in range(NUM_INSTANCES):
        size = int(sizes[index])
        nodes = torch.arange(size)
        edges = torch.stack([nodes, (nodes + 1) % size])
        target = {"graph": labels[index], "number": numbers[index], "node": of_nodes[index, :size]}[labels_of]
        graph = Data(x=features[index, :size], edge_index=torch.cat([edges, edges.flip(0)], 1), y=target)
        graph.z = 1 + of_nodes[index, :size]
        graph.pos = features[index, :size, :3]
        graphs.append(graph)
    return graphs


def _loader(graphs: list[Any]) -> Callable[[int, bool], Any]:
    from torch_geometric.loader import DataLoader

    def make_loader(batch_size: int, shuffle: bool) -> Any:
        return DataLoader(graphs, batch_size=batch_size, shuffle=shuffle)

    return make_loader


def _pooled(step: Any, batch: Any) -> Tensor:
    from torch_geometric.nn import global_mean_pool

    return step.head(global_mean_pool(step.net(batch.x, batch.edge_index), batch.batch))


def _network(name: str) -> nn.Module:
    import torch_geometric.nn

    return getattr(torch_geometric.nn, name)(WIDTH, 8, num_layers=2, dropout=0.1)


@cases(PACKAGE, NETWORKS, "module")
def graph_classifier(name: str) -> Setup:
    """One label a graph."""

    def line(step: Any, batch: Any) -> Tensor:
        return F.cross_entropy(_pooled(step, batch), batch.y)

    return Setup(lambda: Step(line, net=_network(name), head=nn.Linear(8, CLASSES)), _loader(_graphs("graph")))


@case(PACKAGE, "GCN, regression", "module")
def graph_regression() -> Setup:
    """One number a graph."""

    def line(step: Any, batch: Any) -> Tensor:
        return F.mse_loss(_pooled(step, batch).squeeze(1), batch.y)

    return Setup(lambda: Step(line, net=_network("GCN"), head=nn.Linear(8, 1)), _loader(_graphs("number")))


@case(PACKAGE, "GCN, nodes", "module")
def node_classifier() -> Setup:
    """One label a node: an instance has as many rows as its graph has nodes."""

    def line(step: Any, batch: Any) -> Tensor:
        return F.cross_entropy(step.head(step.net(batch.x, batch.edge_index)), batch.y)

    return Setup(lambda: Step(line, net=_network("GCN"), head=nn.Linear(8, CLASSES)), _loader(_graphs("node")))


@case(PACKAGE, "SchNet", "module")
def molecules() -> Setup:
    """Distances of atoms, one number a molecule, the mean absolute error."""
    from torch_geometric.nn.models import SchNet

    def line(step: Any, batch: Any) -> Tensor:
        # Its own graph of neighbours needs a compiled package.
        return F.l1_loss(step.net(batch.z, batch.pos, batch.batch).squeeze(1), batch.y)

    def make_module() -> Step:
        def neighbours(positions: Tensor, graph_of: Tensor) -> tuple[Tensor, Tensor]:
            is_near = (graph_of[:, None] == graph_of[None]) & ~torch.eye(len(graph_of), dtype=torch.bool)
            rows, columns = is_near.nonzero(as_tuple=True)
            return torch.stack([rows, columns]), (positions[rows] - positions[columns]).norm(dim=1)

        return Step(line, net=SchNet(8, 8, 1, 8, interaction_graph=neighbours))

    return Setup(make_module, _loader(_graphs("number")))


@case(PACKAGE, "VGAE", "module")
def link_autoencoder() -> Setup:
    """Links reconstructed, and a KL term; over all nodes of the batch."""
    from torch_geometric.nn import VGAE, GCNConv

    class Encoder(nn.Module):
        """Means and spreads of nodes."""

        def __init__(self) -> None:
            super().__init__()
            self.mean, self.spread = GCNConv(WIDTH, 4), GCNConv(WIDTH, 4)

        def forward(self, features: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
            return self.mean(features, edges), self.spread(features, edges)

    def line(step: Any, batch: Any) -> Tensor:
        codes = step.net.encode(batch.x, batch.edge_index)
        apart = batch.edge_index.flip(0).roll(2, dims=1)
        return step.net.recon_loss(codes, batch.edge_index, apart) + step.net.kl_loss() / len(batch.x)

    return Setup(lambda: Step(line, net=VGAE(Encoder())), _loader(_graphs("graph")))


@case(PACKAGE, "LightningDataset", "module")
def own_data_module() -> Setup:
    """Its data module, whose train loader is wanted."""
    from torch_geometric.data.lightning import LightningDataset

    def line(step: Any, batch: Any) -> Tensor:
        return F.cross_entropy(_pooled(step, batch), batch.y)

    graphs = _graphs("graph")

    def make_loader(batch_size: int, shuffle: bool) -> Any:
        if shuffle:
            return LightningDataset(graphs, batch_size=batch_size, num_workers=0)
        return _loader(graphs)(batch_size, False)

    return Setup(lambda: UnifiedStep(line, net=_network("GCN"), head=nn.Linear(8, CLASSES)), make_loader)
