"""A small residual network for images: 3x3 convolutions in groups between 1x1 ones (ResNeXt, Xie et al. 2017), batch
norm after each, a shortcut around each block (He et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class CNNConfig:
    width: int  # channels of the first stage; each further one has twice as many at half the resolution
    depth: int  # blocks of each stage
    stages: int = 2
    groups: int = 4  # of the 3x3 convolutions
    channels: int = 1
    classes: int = 10

    def __post_init__(self) -> None:
        if self.groups < 1 or self.width % self.groups:
            raise ValueError(f"width must be a multiple of groups, got {self.width} and {self.groups}")
        for name in ("width", "depth", "stages"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class ResidualBlock(nn.Module):
    """``relu(shortcut(x) + bn(conv1x1(relu(bn(grouped3x3(relu(bn(conv1x1(x)))))))))``; the shortcut is x itself where
    shapes agree and otherwise a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, groups: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv3 = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.bn1(self.conv1(x)).relu_()
        hidden = self.bn2(self.conv2(hidden)).relu_()
        return (self.shortcut(x) + self.bn3(self.conv3(hidden))).relu_()


class CNN(nn.Module):
    """[B,channels,H,W] -> logits [B,classes]; H and W at least 2^(stages - 1)."""

    def __init__(self, config: CNNConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Conv2d(config.channels, config.width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(config.width)
        blocks: list[nn.Module] = []
        width = config.width
        for stage in range(config.stages):
            for i in range(config.depth):
                first = stage > 0 and i == 0
                outputs = 2 * width if first else width
                blocks.append(ResidualBlock(width, outputs, config.groups, 2 if first else 1))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, config.classes)

    def features(self, images: Tensor) -> Tensor:
        """Channels averaged over the image, [B, width * 2^(stages - 1)]."""
        return self.blocks(self.bn(self.stem(images)).relu_()).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))
