"""Losses of lightly, over two views of each instance and a small network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.outside.cases import Setup, case, cases, integers, loaders, normal
from benchmarks.outside.steps import Step, perceptron, small_cnn

PACKAGE = "lightly"
WIDTH, EMBEDDING = 6, 5
OF_TWO_VIEWS = {
    "BarlowTwinsLoss": {},
    "DCLLoss": {},
    "DCLWLoss": {},
    "DirectCLRLoss": {"loss_dim": 3},
    "MACLLoss": {},
    "NegativeCosineSimilarity": {},
    "NTXentLoss": {},
    "TiCoLoss": {},
    "VICRegLoss": {},
}


def _views() -> tuple[Tensor, Tensor]:
    features = normal(WIDTH)
    return features, features + 0.3 * normal(WIDTH, 1).squeeze(2).flip(0)


def _setup(make_criterion: Callable[[], Any], line: Callable[[Any, Any], Tensor]) -> Setup:
    return Setup(lambda: Step(line, net=perceptron(WIDTH, EMBEDDING), criterion=make_criterion()), loaders(_views()))


@cases(PACKAGE, OF_TWO_VIEWS, "loss")
def of_two_views(name: str) -> Setup:
    """A loss of two embeddings."""
    from lightly import loss

    def line(step: Any, batch: Any) -> Tensor:
        return step.criterion(step.net(batch[0]), step.net(batch[1]))

    setup = _setup(lambda: getattr(loss, name)(**OF_TWO_VIEWS[name]), line)
    return setup._replace(by_hand=_tico) if name == "TiCoLoss" else setup


def _tico(step: Any, batch: Any) -> Tensor:
    """The rows of TiCo's loss, whose covariance is a constant of the step."""
    criterion = step.criterion
    one, other = (nn.functional.normalize(step.net(batch[view]), dim=1) for view in (0, 1))
    covariance = (one.T @ one) / len(one)
    earlier = torch.zeros_like(covariance) if criterion.C is None else criterion.C
    covariance = criterion.beta * earlier + (1 - criterion.beta) * covariance
    return criterion.rho * ((one @ covariance) * one).sum(1) - (one * other).sum(1)


@case(PACKAGE, "NegativeCosineSimilarity, symmetric", "loss")
def simsiam() -> Setup:
    """SimSiam's: two similarities, each with one side detached."""
    from lightly.loss import NegativeCosineSimilarity

    def line(step: Any, batch: Any) -> Tensor:
        one, other = step.net(batch[0]), step.net(batch[1])
        return 0.5 * (step.criterion(step.head(one), other.detach()) + step.criterion(step.head(other), one.detach()))

    def make_module() -> Step:
        head = nn.Linear(EMBEDDING, EMBEDDING)
        return Step(line, net=perceptron(WIDTH, EMBEDDING), head=head, criterion=NegativeCosineSimilarity())

    return Setup(make_module, loaders(_views()))


@case(PACKAGE, "NTXentLoss with a memory bank", "loss")
def moco() -> Setup:
    """Negatives from earlier batches."""
    from lightly.loss import NTXentLoss

    def line(step: Any, batch: Any) -> Tensor:
        return step.criterion(step.net(batch[0]), step.net(batch[1]).detach())

    def by_hand(step: Any, batch: Any) -> Tensor:
        criterion = copy.deepcopy(step.criterion)  # with its memory
        criterion.cross_entropy = nn.CrossEntropyLoss(reduction="none")
        return criterion(step.net(batch[0]), step.net(batch[1]))

    return _setup(lambda: NTXentLoss(memory_bank_size=(16, EMBEDDING)), line)._replace(by_hand=by_hand)


@case(PACKAGE, "SwaVLoss", "loss")
def swav() -> Setup:
    """Assignments that balance over the batch."""
    from lightly.loss import SwaVLoss

    def line(step: Any, batch: Any) -> Tensor:
        views = [F.normalize(step.net(each), dim=1) for each in batch]
        return step.criterion(views, [])

    return _setup(SwaVLoss, line)


@case(PACKAGE, "DINOLoss", "loss")
def dino() -> Setup:
    """A teacher's outputs around a running centre."""
    from lightly.loss import DINOLoss

    def line(step: Any, batch: Any) -> Tensor:
        students = [step.net(each) for each in batch]
        teachers = [step.teacher(each).detach() for each in batch]
        return step.criterion(teachers, students, epoch=0)

    def make_module() -> Step:
        teacher = nn.Linear(WIDTH, EMBEDDING).requires_grad_(False)
        return Step(line, net=perceptron(WIDTH, EMBEDDING), teacher=teacher, criterion=DINOLoss(EMBEDDING))

    return Setup(make_module, loaders(_views()))


@cases(PACKAGE, ("MSNLoss", "PMSNLoss"), "loss")
def msn(name: str) -> Setup:
    """Two anchors an instance, prototypes, and a mean that is pulled towards uniform."""
    from lightly import loss

    def line(step: Any, batch: Any) -> Tensor:
        anchors = torch.cat([step.net(batch[0]), step.net(0.9 * batch[0])])
        return step.criterion(anchors, step.net(batch[1]).detach(), step.prototypes.weight)

    def make_module() -> Step:
        prototypes = nn.Linear(EMBEDDING, 12, bias=False)
        criterion = getattr(loss, name)()
        return Step(line, net=perceptron(WIDTH, EMBEDDING), prototypes=prototypes, criterion=criterion)

    return Setup(make_module, loaders(_views()))


@cases(PACKAGE, ("EMPSSLLoss", "FroSSLLoss"), "loss")
def of_a_list_of_views(name: str) -> Setup:
    """A loss of any number of views."""
    from lightly import loss

    def line(step: Any, batch: Any) -> Tensor:
        return step.criterion([step.net(each) for each in batch])

    return _setup(getattr(loss, name), line)


@case(PACKAGE, "MMCRLoss", "loss")
def mmcr() -> Setup:
    """Nuclear norms of means over views."""
    from lightly.loss import MMCRLoss

    def line(step: Any, batch: Any) -> Tensor:
        online = torch.stack([step.net(each) for each in batch], dim=1)
        return step.criterion(online, online.detach())

    return _setup(MMCRLoss, line)


@case(PACKAGE, "KoLeoLoss beside cross_entropy", "loss")
def koleo() -> Setup:
    """A term that spreads the batch out, beside the instances' own losses."""
    from lightly.loss import KoLeoLoss

    def line(step: Any, batch: Any) -> Tensor:
        embeddings = step.net(batch[0])
        return F.cross_entropy(step.head(embeddings), batch[1]) + 0.1 * step.criterion(embeddings)

    def make_module() -> Step:
        head = nn.Linear(EMBEDDING, 4)
        return Step(line, net=perceptron(WIDTH, EMBEDDING), head=head, criterion=KoLeoLoss())

    def by_hand(step: Any, batch: Any) -> Tensor:
        return F.cross_entropy(step.head(step.net(batch[0])), batch[1], reduction="none")

    return Setup(make_module, loaders((normal(WIDTH), integers(4))), by_hand)


@case(PACKAGE, "IBOTPatchLoss", "loss")
def ibot() -> Setup:
    """Masked patches, selected out of the batch."""
    from lightly.loss import IBOTPatchLoss

    def line(step: Any, batch: Any) -> Tensor:
        patches, mask = batch
        students, teachers = step.net(patches), step.teacher(patches).detach()
        return step.criterion(teachers[mask], students[mask], mask)

    def make_module() -> Step:
        teacher = nn.Linear(WIDTH, EMBEDDING).requires_grad_(False)
        return Step(line, net=perceptron(WIDTH, EMBEDDING), teacher=teacher, criterion=IBOTPatchLoss(EMBEDDING))

    mask = integers(2, 2, 2).bool()
    mask[:, 0, 0] = True
    return Setup(make_module, loaders((normal(2, 2, WIDTH), mask)))


@case(PACKAGE, "LightlyDataset with SimCLRTransform", "module")
def own_data() -> Setup:
    """The data of lightly: pictures from a data set of torch's, two views, names; its collate is torch's own."""
    import numpy as np
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.transforms import SimCLRTransform
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    from benchmarks.outside.cases import NUM_INSTANCES

    class Pictures(Dataset):
        """Noise and labels; lightly sets ``transform``."""

        transform = None

        def __init__(self) -> None:
            pixels = np.random.default_rng(0).integers(0, 256, (NUM_INSTANCES, 24, 24, 3), np.uint8)
            self.pictures = [Image.fromarray(each) for each in pixels]

        def __len__(self) -> int:
            return NUM_INSTANCES

        def __getitem__(self, index: int) -> Any:
            return self.transform(self.pictures[index]), index % 4

    dataset = LightlyDataset.from_torch_dataset(Pictures(), transform=SimCLRTransform(input_size=16, gaussian_blur=0.0))

    def make_loader(batch_size: int, shuffle: bool) -> DataLoader:
        return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle)

    def line(step: Any, batch: Any) -> Tensor:
        (one, other), _, _ = batch
        return step.criterion(step.net(one), step.net(other))

    return Setup(lambda: Step(line, net=small_cnn(3, 8), criterion=NTXentLoss()), make_loader)
