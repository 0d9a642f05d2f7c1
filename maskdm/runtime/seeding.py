"""Random numbers by name: every draw comes from a generator keyed by what it is for, never from global state.

A run that resumes at step 1,000 draws what the uninterrupted run drew at step 1,000, so no random state is saved.
"""

import hashlib

import torch


def generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """A generator on `device` seeded by `key`, e.g. `generator(device, seed, "train", phase, step)`."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, "big") >> 1  # manual_seed takes a signed 64-bit number
    return torch.Generator(device=device).manual_seed(seed)
