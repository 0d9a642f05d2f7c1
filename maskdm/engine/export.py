"""Trained weights for other programs: a pipeline of diffusers, and the network as ONNX."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from maskdm.config.objective import ObjectiveSettings, objective_name
from maskdm.config.params import Sampling
from maskdm.engine.weights import Weights
from maskdm.networks.network import Network
from maskdm.networks.patches import patchify, unpatchify
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import new_folder, reason

if TYPE_CHECKING:
    from maskdm.evaluation.pipeline import MaskDMPipeline

TOLERANCE = 1e-4  # of ONNX Runtime's answers against PyTorch's, relative to the largest
TRIED = (1, 3)  # batch sizes
# Of the batches that the exporter proves the graph right for. From 64 on diffusers' U-Nets copy an array before they
# enlarge it, which changes no value, so that larger batches get the same answers.
LARGEST = 63
ONNX_FILE = "network.onnx"


def export(weights: Weights, out: Path, onnx: bool) -> list[Path]:
    """Write a pipeline of diffusers to the new folder `out` and, if asked to, its network as `network.onnx`.

    Returns:
        The files.

    Raises:
        MaskDMError: the folder exists or cannot be written, or ONNX Runtime answers otherwise than PyTorch, or is not
            installed.
    """
    network = weights.network.cpu()
    with new_folder(out) as folder:
        write_pipeline(folder, network, weights.objective, weights.sampling)
        (folder / "README.md").write_text(_card(weights, onnx), encoding="utf-8")
        if onnx:
            write_onnx(network, folder / ONNX_FILE)
    return sorted(path for path in out.rglob("*") if path.is_file())


def write_pipeline(folder: Path, network: Network, objective: ObjectiveSettings, sampling: Sampling) -> None:
    """Write a pipeline of diffusers: configs, safetensors, and files that name its classes."""
    from maskdm.evaluation.pipeline import MaskDMPipeline  # here: it takes a second to load, and most stages write none

    settings = objective.model_dump(mode="json"), sampling.model_dump(mode="json")
    pipeline = MaskDMPipeline(network, *settings)
    pipeline.save_pretrained(folder)
    _name_the_code(folder, pipeline)


class OnImages(nn.Module):
    """The network on whole images: `x_t [B, C, H, W]`, `t [B]` and, with classes, `labels [B]` -> `[B, C, H, W]`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict for all tokens."""
        prediction = self.network(patchify(x_t, self.network.patch_size), t, labels=labels)
        return unpatchify(prediction, self.network.patch_size, self.network.grid)


def write_onnx(network: Network, path: Path) -> None:
    """Write the network, for batches of any size, and check it with ONNX Runtime.

    Raises:
        MaskDMError: a library is not installed, or the answers differ.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise MaskDMError(f"--onnx: {error.name} is not installed; `pip install maskdm[onnx]`") from None
    module = OnImages(network).eval()
    inputs = _inputs(network, max(TRIED))
    batch = torch.export.Dim("batch", min=1, max=LARGEST)
    shapes = {name: {0: batch} for name in inputs}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                kwargs=inputs,
                f=path,
                input_names=list(inputs),
                output_names=["prediction"],
                dynamic_shapes=shapes,
                external_data=False,
                dynamo=True,
                verbose=False,
            )
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # the exporter and the runtime raise many kinds
        raise MaskDMError(f"--onnx: {type(network).__name__} cannot be exported: {reason(error)[:300]}") from error
    for count in TRIED:
        given = _inputs(network, count)
        with torch.no_grad():
            expected = module(**given).numpy()
        (found,) = session.run(None, {name: value.numpy() for name, value in given.items()})
        apart = float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
        if not apart <= TOLERANCE:
            raise MaskDMError(f"--onnx: ONNX Runtime's answers are {apart:.1g} off; allowed: at most {TOLERANCE:g}")


def _inputs(network: Network, count: int) -> dict[str, Tensor]:
    """Noise at several times, and classes where the network has some."""
    random = torch.Generator().manual_seed(count)
    rows, columns = network.grid
    channels = network.token_dim // network.patch_size**2
    shape = (count, channels, rows * network.patch_size, columns * network.patch_size)
    found = {"x_t": torch.randn(shape, generator=random), "t": torch.linspace(1, 900, count)}
    if network.num_classes is not None:
        found["labels"] = torch.arange(count) % network.num_classes
    return found


def _name_the_code(folder: Path, pipeline: "MaskDMPipeline") -> None:
    """Let diffusers find the classes of the pipeline and of its network: in files of the folder, which import them."""
    index = folder / "model_index.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    places = {"_class_name": ("pipeline", type(pipeline)), "network": ("network/classes", type(pipeline.network))}
    for key, (file, kind) in places.items():
        content[key] = [Path(file).name, kind.__name__]
        (folder / f"{file}.py").write_text(f"from {kind.__module__} import {kind.__name__}\n", encoding="utf-8")
    index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _card(weights: Weights, onnx: bool) -> str:
    """What the folder holds and how it is used."""
    classes = weights.network.num_classes
    kind = type(weights.network)
    labels = ", `labels [B]`" if classes is not None else ""
    text = f"""# {weights.name}

A network of MaskDM as a pipeline of diffusers: {kind.__name__}, {weights.network.num_parameters():,} weights.
It was trained with: {objective_name(weights.objective)}.

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained(".", trust_remote_code=True)  # needs the package maskdm
pipeline(num_images=4).images[0].save("sample.png")
```
"""
    if onnx:
        text += f"""
`{ONNX_FILE}` is the network on whole images: `x_t [B, C, H, W]`, `t [B]` (time steps, 0 to 999){labels} ->
`prediction [B, C, H, W]`. Pixels are in [-1, 1].
"""
    return text
