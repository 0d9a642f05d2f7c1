"""MaskDM: does masked pre-training make a diffusion model cheaper to train, by how much, with which mask?"""
