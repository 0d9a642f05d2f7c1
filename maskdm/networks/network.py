"""What every network offers: predictions for tokens of an image, and, if it is a transformer, its blocks one by one.

A method (`maskdm.methods`) may show other tokens to other blocks. It takes a transformer apart into `embed`, `run` and
`predict`, and changes the `Stream` of tokens between two blocks.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn

from maskdm.networks.patches import gather_tokens


class Network(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers ships no types
    """Predicts noise, velocity or the clean image for patch tokens of a noisy image.

    `save_pretrained(folder)` and `from_pretrained(folder)` write and read `config.json` and safetensors.
    """

    patch_size: int  # pixels a side of a token
    grid: tuple[int, int]  # rows and columns of tokens
    token_dim: int  # values of a token
    num_classes: int | None  # labels that condition the prediction; None: unconditional

    @property
    def num_tokens(self) -> int:
        """Tokens of a whole image."""
        return self.grid[0] * self.grid[1]

    @property
    def no_label(self) -> int:
        """The label of an image whose class is not told, of a network with classes."""
        assert self.num_classes is not None
        return self.num_classes

    def _set_up(self, image_size: tuple[int, int], patch_size: int, in_channels: int, num_classes: int | None) -> None:
        """Note the sizes of tokens and the number of labels.

        Raises:
            ValueError: `patch_size` does not divide `image_size`.
        """
        if image_size[0] % patch_size or image_size[1] % patch_size:
            raise ValueError(f"patch_size={patch_size} does not divide image_size={tuple(image_size)}")
        self.patch_size = patch_size
        self.grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.token_dim = patch_size**2 * in_channels
        self.num_classes = num_classes

    def _check_labels(self, labels: Tensor | None) -> None:
        """Refuse labels that are missing, or that nothing would read.

        Raises:
            ValueError: so it is.
        """
        if (labels is None) != (self.num_classes is None):
            raise ValueError("labels are required by a network with classes, and by no other")

    @abstractmethod
    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        ids_keep: Tensor | None = None,
        labels: Tensor | None = None,
        positions: bool = True,
    ) -> Tensor:
        """Predict for the visible tokens only.

        Args:
            x_t: noisy tokens `[B, S, token_dim]`: those at `ids_keep`, or all `num_tokens` of them, or all of an image
                of a lower resolution, a square of tokens becoming one.
            t: time steps `[B]`, 0 to T - 1.
            ids_keep: place of each token on the grid, int64 `[B, S]`; None: all tokens, in order.
            labels: class of each image, int64 `[B]`, or `no_label`; required exactly if the network has classes.
            positions: whether to tell the tokens their places; without, `ids_keep` is not read.

        Returns:
            The prediction `[B, S, token_dim]`, in the order of `x_t`.
        """

    def parts(self) -> list[nn.Module]:
        """Those that a long training compiles, each by itself; none: it is not compiled."""
        return []

    @abstractmethod
    def matrices(self) -> list[Tensor]:
        """The weights that Muon updates: matrices between hidden features."""

    @abstractmethod
    def position_weights(self) -> list[Tensor]:
        """The weights that no one needs where the network is not told the places of its tokens."""


@dataclass(frozen=True)
class Stream:
    """Tokens on their way through the blocks of a transformer."""

    x: Tensor  # `[B, E + S, embed_dim]`: E extra tokens (time, label), then those of the image
    num_extra_tokens: int  # E
    skips: tuple[Tensor, ...] = ()  # like `x`: what blocks have left for partners that are still to come
    context: Tensor | None = None  # `[B, embed_dim]`: what conditions every block; None: the extra tokens do

    @property
    def tokens(self) -> Tensor:
        """Those of the image, `[B, S, embed_dim]`."""
        return self.x[:, self.num_extra_tokens :]

    def with_tokens(self, tokens: Tensor) -> "Stream":
        """With other tokens of the image."""
        return replace(self, x=torch.cat([self.x[:, : self.num_extra_tokens], tokens], dim=1))

    def select(self, ids_keep: Tensor) -> "Stream":
        """Keep the tokens at `ids_keep`, int64 `[B, K]`, here and in all skips; the extra tokens stay."""
        return replace(self, x=self._kept(self.x, ids_keep), skips=tuple(self._kept(s, ids_keep) for s in self.skips))

    def spread(self, ids_keep: Tensor, fill: Tensor) -> "Stream":
        """Put the tokens back to their places, here and in all skips.

        Args:
            ids_keep: the places, int64 `[B, S]`.
            fill: what stands at all other places, `[N, embed_dim]` or `[B, N, embed_dim]`.
        """
        skips = tuple(self._spread(skip, ids_keep, fill) for skip in self.skips)
        return replace(self, x=self._spread(self.x, ids_keep, fill), skips=skips)

    def rejoin(self, inner: "Stream", ids_keep: Tensor, fill: Tensor) -> "Stream":
        """The stream after a detour: `inner` began as `self.select(ids_keep)` and has passed some blocks.

        Its tokens return to their places. Others are `fill`, as in `spread`. What blocks before the detour have left
        for partners behind it is whole.
        """
        spread = inner.spread(ids_keep, fill)
        whole = self.skips[: len(inner.skips)]
        return replace(spread, skips=whole + spread.skips[len(whole) :])

    def _kept(self, x: Tensor, ids_keep: Tensor) -> Tensor:
        extra = self.num_extra_tokens
        return torch.cat([x[:, :extra], gather_tokens(x[:, extra:], ids_keep)], dim=1)

    def _spread(self, x: Tensor, ids_keep: Tensor, fill: Tensor) -> Tensor:
        extra, dim = self.num_extra_tokens, x.shape[-1]
        base = fill.to(x.dtype).expand(len(x), *fill.shape[-2:])
        places = ids_keep[..., None].expand(-1, -1, dim)
        return torch.cat([x[:, :extra], base.scatter(1, places, x[:, extra:])], dim=1)


class Transformer(Network):
    """A network of blocks that each take tokens in any number."""

    depth: int  # blocks
    has_long_skips: bool  # whether block i leaves its tokens for block depth - 1 - i
    patch_embed: nn.Linear
    pos_embed: nn.Parameter  # what tells a token its place, `[num_tokens, embed_dim]`
    head: nn.Linear

    @abstractmethod
    def begin(self, tokens: Tensor, t: Tensor, labels: Tensor | None) -> Stream:
        """Embedded tokens `[B, S, embed_dim]` with all that conditions them, before the first block."""

    @abstractmethod
    def run(self, stream: Stream, start: int, stop: int) -> Stream:
        """The tokens behind the blocks `start` to `stop - 1`, counted from 0."""

    @abstractmethod
    def features(self, stream: Stream) -> Tensor:
        """What the head reads, `[B, S, embed_dim]`: the tokens behind the last block, normalised."""

    def embed(
        self,
        x_t: Tensor,
        t: Tensor,
        ids_keep: Tensor | None = None,
        labels: Tensor | None = None,
        positions: bool = True,
    ) -> Stream:
        """The tokens before the first block; arguments as in `forward`."""
        tokens = self.patch_embed(x_t)
        return self.begin(tokens + self.places(ids_keep, x_t.shape[1]) if positions else tokens, t, labels)

    def places(self, ids_keep: Tensor | None, count: int) -> Tensor:
        """What tells `count` tokens their places: those at `ids_keep`, or those of the whole image.

        Where a whole image has fewer tokens than the grid, each stands for a square, and its place is their mean.
        """
        if ids_keep is not None:
            return F.embedding(ids_keep, self.pos_embed)
        if count == self.num_tokens:
            return self.pos_embed
        factor = math.isqrt(self.num_tokens // count)
        squares = rearrange(
            self.pos_embed, "(h p w q) d -> (h w) (p q) d", p=factor, q=factor, w=self.grid[1] // factor
        )
        return squares.mean(dim=1)

    def predict(self, stream: Stream) -> Tensor:
        """What the tokens behind the last block say: `[B, S, token_dim]`."""
        return self.head(self.features(stream))

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        ids_keep: Tensor | None = None,
        labels: Tensor | None = None,
        positions: bool = True,
    ) -> Tensor:
        """Predict for the visible tokens: all blocks see the same ones. As in `Network`."""
        return self.predict(self.run(self.embed(x_t, t, ids_keep, labels, positions), 0, self.depth))

    def position_weights(self) -> list[Tensor]:
        """As in `Network`."""
        return [self.pos_embed]
