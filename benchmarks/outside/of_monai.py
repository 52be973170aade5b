"""MONAI: its networks and losses, and its loader over a list of dicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.outside.cases import NUM_INSTANCES, Setup, case, cases, integers, loaders, normal
from benchmarks.outside.steps import Step, perceptron, pixel_net

PACKAGE = "monai"
NUM_CLASSES, SIZE = 3, 16
# Of logits and class masks (B, 1, H, W); softmax and one-hot inside.
OF_MASKS = ("DiceCELoss", "DiceFocalLoss", "DiceLoss", "GeneralizedDiceLoss", "TverskyLoss", "HausdorffDTLoss")
# Of two pictures.
OF_PICTURES = {
    "GlobalMutualInformationLoss": {},
    "LocalNormalizedCrossCorrelationLoss": {"spatial_dims": 2},
    "SSIMLoss": {"spatial_dims": 2, "win_size": 5},
}


def _line(step: Any, batch: Any) -> Tensor:
    return step.criterion(step.net(batch[0]), batch[1])


def _masks(*shape: int) -> Tensor:
    return integers(NUM_CLASSES, *shape)


def _setup(make_criterion: Any, target: Tensor, outputs: int = NUM_CLASSES, line: Any = _line) -> Setup:
    columns = normal(1, SIZE, SIZE), target
    return Setup(lambda: Step(line, net=pixel_net(1, outputs), criterion=make_criterion()), loaders(columns))


@cases(PACKAGE, OF_MASKS, "loss")
def of_masks(name: str) -> Setup:
    """A loss of class masks, its regions apart for each instance."""
    from monai import losses

    return _setup(lambda: getattr(losses, name)(to_onehot_y=True, softmax=True), _masks(1, SIZE, SIZE))


@case(PACKAGE, "DiceLoss(batch=True)", "loss")
def dice_of_the_batch() -> Setup:
    """Regions of the whole batch."""
    from monai.losses import DiceLoss

    return _setup(lambda: DiceLoss(to_onehot_y=True, softmax=True, batch=True), _masks(1, SIZE, SIZE))


@cases(PACKAGE, ("FocalLoss", "FocalLoss(use_softmax=True)"), "loss")
def focal(name: str) -> Setup:
    """Focal losses by sigmoid and by softmax."""
    from monai.losses import FocalLoss

    return _setup(lambda: FocalLoss(to_onehot_y=True, use_softmax="softmax" in name), _masks(1, SIZE, SIZE))


@case(PACKAGE, "NACLLoss", "loss")
def neighbours() -> Setup:
    """Cross-entropy and a term of each pixel's neighbours."""
    from monai.losses import NACLLoss

    return _setup(lambda: NACLLoss(NUM_CLASSES, dim=2), _masks(SIZE, SIZE))


@cases(PACKAGE, OF_PICTURES, "loss")
def of_pictures(name: str) -> Setup:
    """A likeness of two pictures."""
    from monai import losses

    def line(step: Any, batch: Any) -> Tensor:
        return step.criterion(step.net(batch[0]).sigmoid(), batch[1])

    target = normal(1, SIZE, SIZE).mul(0.3).add(0.5).clamp(0, 1)
    return _setup(lambda: getattr(losses, name)(**OF_PICTURES[name]), target, 1, line)


@case(PACKAGE, "DeepSupervisionLoss of DiceCELoss", "loss")
def deep_supervision() -> Setup:
    """Several outputs, one target."""
    from monai.losses import DeepSupervisionLoss, DiceCELoss

    def line(step: Any, batch: Any) -> Tensor:
        logits = step.net(batch[0])
        return step.criterion([logits, F.avg_pool2d(logits, 2)], batch[1])

    def make_criterion() -> Any:
        return DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True))

    return _setup(make_criterion, _masks(1, SIZE, SIZE).float(), line=line)


@cases(PACKAGE, ("BarlowTwinsLoss", "ContrastiveLoss"), "loss")
def of_two_views(name: str) -> Setup:
    """Two views of a batch."""
    from monai import losses

    def line(step: Any, batch: Any) -> Tensor:
        return step.criterion(step.net(batch[0]), step.net(batch[1]))

    columns = normal(6), normal(6) + 0.1 * normal(2, 3).flatten(1).flip(0)
    return Setup(lambda: Step(line, net=perceptron(6, 5), criterion=getattr(losses, name)()), loaders(columns))


@cases(PACKAGE, ("SegResNet", "UNet"), "module")
def network(name: str) -> Setup:
    """A segmentation network with Dice and cross-entropy."""
    from monai import networks
    from monai.losses import DiceCELoss

    options: dict[str, Any] = {"spatial_dims": 2, "in_channels": 1, "out_channels": NUM_CLASSES}
    if name == "UNet":
        options |= {"channels": (8, 16), "strides": (2,), "dropout": 0.1}
    else:
        options |= {"init_filters": 8, "blocks_down": (1, 1), "blocks_up": (1,)}

    def make_module() -> Step:
        net = getattr(networks.nets, name)(**options)
        return Step(_line, net=net, criterion=DiceCELoss(to_onehot_y=True, softmax=True))

    return Setup(make_module, loaders((normal(1, SIZE, SIZE), _masks(1, SIZE, SIZE))))


@case(PACKAGE, "DenseNet121", "module")
def classifier() -> Setup:
    """A classifier with torch's loss."""
    from monai.networks.nets import DenseNet

    def make_module() -> Step:
        net = DenseNet(2, 1, NUM_CLASSES, init_features=8, growth_rate=4, block_config=(2, 2))
        return Step(lambda step, batch: F.cross_entropy(step.net(batch[0]), batch[1]), net=net)

    return Setup(make_module, loaders((normal(1, 32, 32), integers(NUM_CLASSES))))


def _dict_module() -> Step:
    """A small UNet on batches that are dicts."""
    from monai.losses import DiceCELoss
    from monai.networks.nets import UNet

    def line(step: Any, batch: Any) -> Tensor:
        return step.criterion(step.net(batch["image"]), batch["label"])

    net = UNet(2, 1, NUM_CLASSES, channels=(8, 16), strides=(2,))
    return Step(line, net=net, criterion=DiceCELoss(to_onehot_y=True, softmax=True))


@case(PACKAGE, "DataLoader with CacheDataset", "module")
def own_loader() -> Setup:
    """MONAI's data: a list of dicts, transforms, MetaTensors."""
    from monai.data import CacheDataset, DataLoader
    from monai.transforms import Compose, EnsureTyped, ScaleIntensityd

    images, masks = normal(1, SIZE, SIZE).numpy(), _masks(1, SIZE, SIZE).numpy().astype(np.float32)
    rows = [{"image": images[index], "label": masks[index]} for index in range(NUM_INSTANCES)]
    transform = Compose([ScaleIntensityd("image"), EnsureTyped(("image", "label"))])
    dataset = CacheDataset(rows, transform, progress=False)

    def make_loader(batch_size: int, shuffle: bool) -> Any:
        return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, num_workers=0)

    return Setup(_dict_module, make_loader)


@case(PACKAGE, "list_data_collate of several crops", "module")
def several_crops() -> Setup:
    """A transform that makes several crops of a picture, which the loader joins to one batch of more rows."""
    from monai.data import DataLoader, Dataset
    from monai.transforms import SpatialCropd

    images, masks = normal(1, SIZE, SIZE), _masks(1, SIZE, SIZE).float()
    rows = [{"image": images[index], "label": masks[index]} for index in range(NUM_INSTANCES)]
    crops = [SpatialCropd(("image", "label"), roi_start=(at, at), roi_end=(at + 8, at + 8)) for at in (0, 8)]
    dataset = Dataset(rows, lambda row: [crop(row) for crop in crops])

    def make_loader(batch_size: int, shuffle: bool) -> Any:
        return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, num_workers=0)

    return Setup(_dict_module, make_loader)


@case(PACKAGE, "DiffusionModelUNet", "module")
def diffusion() -> Setup:
    """A denoising step, with noise and times from the data so that an instance has one loss."""
    from monai.networks.nets import DiffusionModelUNet
    from monai.networks.schedulers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=100)

    def line(step: Any, batch: Any) -> Tensor:
        images, noise, times = batch
        noisy = scheduler.add_noise(images, noise, times)
        return F.mse_loss(step.net(noisy, times), noise)

    def make_module() -> Step:
        net = DiffusionModelUNet(
            2,
            1,
            1,
            channels=(8, 8),
            attention_levels=(False, False),
            num_res_blocks=1,
            num_head_channels=8,
            norm_num_groups=4,
        )
        # Its last convolution begins at zero.
        torch.nn.init.normal_(net.out[2].conv.weight, std=0.1)
        return Step(line, net=net)

    columns = normal(1, SIZE, SIZE), normal(1, SIZE, SIZE).flip(0), integers(100)
    return Setup(make_module, loaders(columns))
