"""MaskDM: does masked pre-training make a diffusion model cheaper to train, by how much, with which mask?

`from maskdm import UViT` gives a network, as do `DiT` and `UNet`: `UViT.from_pretrained(folder)` loads what a run has
left.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from maskdm.runtime.threads import wait_briefly
from maskdm.runtime.torchrun import own_number

if TYPE_CHECKING:
    from maskdm.networks.dit import DiT
    from maskdm.networks.unet import UNet
    from maskdm.networks.uvit import UViT

__all__ = ["DiT", "UNet", "UViT"]

# Here: before anything of ours imports torch, or tqdm, which read these variables when they are imported.
wait_briefly()
if own_number("RANK"):
    os.environ["TQDM_DISABLE"] = "1"  # one bar for all processes of torchrun


def __getattr__(name: str) -> Any:
    """Import a network when it is asked for: torch and diffusers take seconds."""
    if name in __all__:
        return getattr(importlib.import_module(f"maskdm.networks.{name.lower()}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
