"""Images as sequences of patch tokens, and the gathering of the tokens that a mask keeps."""

import torch
from einops import rearrange
from torch import Tensor


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """`[B, C, H, W]` -> tokens `[B, N, patch_size**2 * C]`, row by row; any dtype."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(tokens: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Tokens `[B, N, patch_size**2 * C]` of a `(rows, columns)` grid -> `[B, C, H, W]`; undoes `patchify`."""
    return rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], w=grid[1], p=patch_size, q=patch_size)


def gather_tokens(tokens: Tensor, ids_keep: Tensor) -> Tensor:
    """Keep `tokens[b, ids_keep[b, s]]`: `[B, N, D]` and `[B, S]` -> `[B, S, D]`."""
    return tokens[torch.arange(len(tokens), device=tokens.device)[:, None], ids_keep]
