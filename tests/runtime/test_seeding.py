import torch

from maskdm.runtime.seeding import generator


def test_equal_keys_draw_equally_and_different_keys_differently() -> None:
    def draw(*key: int | str) -> list[float]:
        return torch.rand(4, generator=generator("cpu", *key)).tolist()

    assert draw(0, "train", 1, 2) == draw(0, "train", 1, 2)
    keys: list[tuple[int | str, ...]] = [(0, "train", 1, 2), (0, "train", 2, 1), (0, "train", 12), (1, "train", 1, 2)]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    torch.rand(4, generator=generator("cpu", 0))
    assert torch.equal(before, torch.get_rng_state())
