import torch
from hypothesis import given
from hypothesis import strategies as st

from maskdm.networks.patches import gather_tokens, patchify, unpatchify


@given(p=st.integers(1, 4), h=st.integers(1, 4), w=st.integers(1, 4), c=st.integers(1, 3))
def test_unpatchify_undoes_patchify(p: int, h: int, w: int, c: int) -> None:
    images = torch.arange(2 * c * h * p * w * p).reshape(2, c, h * p, w * p)
    tokens = patchify(images, p)
    assert tokens.shape == (2, h * w, p * p * c)
    assert torch.equal(unpatchify(tokens, p, (h, w)), images)


def test_a_token_holds_the_pixels_of_its_patch_row_by_row() -> None:
    images = torch.arange(16).reshape(1, 1, 4, 4)
    assert patchify(images, 2)[0, 2].tolist() == [8, 9, 12, 13]


def test_gathering_picks_each_images_own_tokens() -> None:
    tokens = torch.arange(12).reshape(2, 3, 2)
    kept = gather_tokens(tokens, torch.tensor([[2, 0], [1, 1]]))
    assert kept.tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
