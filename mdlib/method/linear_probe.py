"""What is probed linearly: stage 8.

The segmenter's features and the encoder's own tokens, with many labels and with few.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mdlib.models.encoder import Encoder


class TokenProbe(nn.Module):
    """One linear layer on the patch tokens of a frozen encoder.

    Images (B, 3, H, W) float in [0, 1] -> logits, as a Segmenter.

    Tokens are whitened first, each channel by a running mean and deviation: all tokens share one
    large vector, beside which a layer would hardly learn what differs. Whitening is linear, so the
    probe stays a linear one.
    """

    def __init__(self, encoder: Encoder, *, outputs: int):
        super().__init__()
        # a function and no module: the frozen encoder is not part of what is saved
        self.tokens_of = encoder.tokens
        self.whiten = nn.BatchNorm2d(encoder.width, affine=False)
        self.classifier = nn.Conv2d(encoder.width, outputs, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        self.to(encoder.device)

    def features(self, images: Tensor) -> Tensor:
        """What the classifier sees: (B, D, h, w), one cell a patch."""
        tokens = self.tokens_of((images * 255).round().byte())
        return self.whiten(tokens.patches.transpose(1, 2).unflatten(2, tokens.grid_hw))

    def forward(self, images: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
        logits = self.classifier(self.features(images))
        return F.interpolate(
            logits, size=size or images.shape[-2:], mode="bilinear", align_corners=False
        )
