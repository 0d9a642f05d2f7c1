"""MaskDM's own method: removed tokens cost nothing, and nothing is predicted for them (PAPER, MDSM)."""

from typing import Literal

from maskdm.methods.method import DroppingMethod


class Drop(DroppingMethod):
    """The network sees the kept tokens alone, each with its place. Without a mask it is ordinary training."""

    name: Literal["drop"]


DROP = Drop(name="drop")
