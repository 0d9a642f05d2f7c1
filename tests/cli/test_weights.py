"""`export`: what other programs make of the weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from maskdm.engine.export import LARGEST, ONNX_FILE, OnImages, write_onnx
from maskdm.networks.catalogue import NETWORKS
from maskdm.networks.network import Network
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.seeding import generator
from tests.cli.conftest import Run

SIZES = {"image_size": (8, 8), "patch_size": 2, "in_channels": 1}
TRANSFORMER = {"embed_dim": 16, "depth": 3, "num_heads": 2}
UNET = {"block_out_channels": (32, 32), "layers_per_block": 1, "attention_levels": (1,)}


def test_diffusers_loads_the_pipeline_and_draws_what_sample_draws(
    project: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", "scratch", "--json") == 0
    files = json.loads(capsys.readouterr().out)
    folder = project / "exports" / "scratch"
    assert str(folder / "network" / "diffusion_pytorch_model.safetensors") in files
    assert all(Path(file).suffix in (".json", ".safetensors", ".py", ".md") for file in files)
    assert run("sample", "scratch", "--count", 2, "--out", "drawn", "--animation", "none") == 0

    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    generators = [generator("cpu", 0, "sample", index) for index in range(2)]
    images = pipeline(num_images=2, generators=generators).images
    for index, image in enumerate(images):
        drawn = np.asarray(Image.open(project / "drawn" / "images" / f"{index:05d}.png")).astype(int)
        assert np.abs(np.asarray(image) - drawn).max() <= 1  # rounding
    with pytest.raises(ValueError, match=r"sampling\.sampler=euler with objective=ddpm"):
        pipeline(sampler="euler")


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_runtime_answers_as_pytorch_does_for_every_network(name: str, tmp_path: Path) -> None:
    import onnxruntime

    options = UNET if name == "unet" else TRANSFORMER
    network = NETWORKS[name](**SIZES, **options, num_classes=3)  # type: ignore[arg-type]
    write_onnx(network, path := tmp_path / ONNX_FILE)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    count = LARGEST + 2
    x_t, t, labels = torch.randn(count, 1, 8, 8), torch.rand(count) * 999, torch.arange(count) % 4
    (found,) = session.run(None, {"x_t": x_t.numpy(), "t": t.numpy(), "labels": labels.numpy()})
    with torch.no_grad():
        expected = OnImages(network).eval()(x_t, t, labels).numpy()
    assert found == pytest.approx(expected, abs=1e-4)


def test_answers_that_differ_are_refused(tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskdm.engine.export.TOLERANCE", -1.0)
    with pytest.raises(MaskDMError, match=r"ONNX Runtime's answers are .* off"):
        write_onnx(network, tmp_path / ONNX_FILE)
