"""MaskDM: does masked pre-training make a diffusion model cheaper to train, by how much, with which mask?

`from maskdm import UViT` gives the network: `UViT.from_pretrained(folder)` loads what a run has left.
"""

from typing import TYPE_CHECKING, Any

from maskdm.runtime.threads import wait_briefly

if TYPE_CHECKING:
    from maskdm.networks.uvit import UViT

__all__ = ["UViT"]

wait_briefly()  # here: before anything of ours imports torch


def __getattr__(name: str) -> Any:
    """Import the network when it is asked for: torch and diffusers take seconds."""
    if name == "UViT":
        from maskdm.networks.uvit import UViT

        return UViT
    raise AttributeError(f"module {__name__} has no attribute {name}")
