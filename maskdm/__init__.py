"""MaskDM: does masked pre-training make a diffusion model cheaper to train, by how much, with which mask?"""

from maskdm.threads import wait_passively

wait_passively()  # here: before anything of ours imports torch
