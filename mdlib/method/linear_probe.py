"""Linear probes: stage 8.

A probe is one linear layer on frozen features. Here are the layer, and a network that puts it on
the encoder's own tokens; `segmenter.reset_classifier` puts it on the segmenter's features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdlib.models.encoder import Encoder


def linear_classifier(channels: int, outputs: int, *, device: str | torch.device) -> nn.Conv2d:
    """Build a 1x1 convolution, its weights drawn from N(0, 0.01) on the device, its bias zero."""
    classifier = nn.Conv2d(channels, outputs, 1).to(device)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.get_parameter("bias"))
    return classifier


class TokenProbe(nn.Module):
    """One linear layer on the patch tokens of a frozen encoder.

    Images (B, 3, H, W) float in [0, 1] -> logits, as a Segmenter.

    Tokens are whitened first, each channel by a running mean and standard deviation: all tokens
    share one large vector, which hides the differences that the layer must learn. Whitening is
    linear, so the probe stays a linear one.

    Args:
        encoder: the frozen ViT; it is not part of the probe's state.
        outputs: logits a pixel.
    """

    def __init__(self, encoder: Encoder, *, outputs: int):
        super().__init__()
        # a function, not a module: the frozen encoder is not saved with the probe
        self.tokens_of = encoder.tokens
        self.whiten = nn.BatchNorm2d(encoder.width, affine=False)
        self.classifier = linear_classifier(encoder.width, outputs, device="cpu")
        self.to(encoder.device)

    def features(self, images: Tensor) -> Tensor:
        """Compute the classifier's input.

        Args:
            images: (B, 3, H, W) float in [0, 1].

        Returns:
            (B, D, h, w) float32, one cell a patch.
        """
        tokens = self.tokens_of((images * 255).round().byte())
        return self.whiten(tokens.patches.transpose(1, 2).unflatten(2, tokens.grid_hw))

    def forward(self, images: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
        """Compute the logits, enlarged bilinearly.

        Args:
            images: (B, 3, H, W) float in [0, 1].
            size: (H, W) of the logits; None: that of the images.

        Returns:
            (B, outputs, H, W) float.
        """
        logits = self.classifier(self.features(images))
        return F.interpolate(
            logits, size=size or images.shape[-2:], mode="bilinear", align_corners=False
        )
