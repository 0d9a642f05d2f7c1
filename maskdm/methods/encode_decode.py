"""MaskDiT: an encoder sees the kept tokens, a light decoder all places (Zheng et al. 2023, arXiv 2306.09305).

There the decoder is a network of its own. Here the last blocks are the decoder, so that only a mask token is added.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from maskdm.config.schema import Positive
from maskdm.methods.method import Losses, PartlyDenseMethod, View, Weights
from maskdm.networks.network import Transformer
from maskdm.networks.patches import gather_tokens


class EncodeDecode(PartlyDenseMethod):
    """Denoises the kept tokens, and reconstructs the noisy content of the removed ones."""

    name: Literal["encode_decode"]
    decoder: Positive  # blocks that see all places
    reconstruction: Annotated[float, Field(ge=0)] = 0.1  # optional: weight of the reconstruction loss

    @property
    def dense_blocks(self) -> int:
        """The decoder's."""
        return self.decoder

    def weights(self, network: Transformer) -> dict[str, Tensor]:
        """The mask token."""
        return {"mask_token": network.pos_embed.new_zeros(network.pos_embed.shape[1])}

    def predict(self, network: Transformer, weights: Weights, view: View) -> tuple[Tensor, Tensor | None]:
        """For all places."""
        encoder = network.depth - self.decoder
        visible = gather_tokens(view.x_t, view.kept)
        encoded = network.run(network.embed(visible, view.t, view.kept, view.labels), 0, encoder)
        fill = weights["mask_token"] + network.pos_embed
        return network.predict(network.run(encoded.spread(view.kept, fill), encoder, network.depth)), None

    def losses(self, network: Transformer, weights: Weights, view: View) -> Losses:
        """Of the kept tokens against the target, of the removed ones against the noisy input (their equation 4)."""
        prediction, _ = self.predict(network, weights, view)
        kept = torch.zeros(view.x_t.shape[:2], device=view.x_t.device).scatter(1, view.kept, 1.0)
        denoising = (prediction.float() - view.target).square().mean(dim=2)
        rebuilt = (prediction.float() - _normalised(view.x_t)).square().mean(dim=2)
        removed = 1 - kept
        return Losses(
            (denoising * kept).sum(dim=1) / kept.sum(dim=1),
            self.reconstruction * (rebuilt * removed).sum(dim=1) / removed.sum(dim=1).clamp(min=1),
        )


def _normalised(tokens: Tensor) -> Tensor:
    """Each token with mean 0 and variance 1, as masked autoencoders are taught (He et al. 2021)."""
    mean, variance = tokens.mean(dim=-1, keepdim=True), tokens.var(dim=-1, keepdim=True)
    return (tokens - mean) / (variance + 1e-6).sqrt()
