"""`maskdm import-weights` on files as the authors' training saves them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from maskdm import UViT, cli
from maskdm.config.params import Params
from maskdm.evaluation.sampling import sample_images
from maskdm.networks.authors import import_uvit
from maskdm.training.checkpoint import load_snapshot
from tests.conftest import PARAMS
from tests.denoisers import OBJECTIVES, objective_settings
from tests.networks.test_authors import HEADS, Weights, their_weights


def with_prefix(weights: Weights, prefix: str) -> Weights:
    return {f"{prefix}{name}": weight for name, weight in weights.items()}


def checkpoint(raw: Weights, averaged: Weights | None, beta_schedule: str = "linear") -> dict[str, Any]:
    """The network in its diffusion, beside the optimizer's state; ema_pytorch keeps both kinds of weights."""
    schedule = DDPMScheduler(1000, beta_schedule=beta_schedule)
    buffers = {"betas": schedule.betas, "alphas_cumprod": schedule.alphas_cumprod, "loss_weight": torch.ones(1000)}
    model = with_prefix(raw, "model.") | buffers
    saved = {"step": 200_000, "model": model, "opt": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "scaler": None}
    if averaged is None:
        return saved
    ema = with_prefix(model, "online_model.") | with_prefix(with_prefix(averaged, "model.") | buffers, "ema_model.")
    return saved | {"ema": ema | {"initted": torch.tensor(True), "step": torch.tensor(200_000)}}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> None:
    monkeypatch.setattr("sys.argv", ["maskdm", "import-weights", *map(str, arguments)])
    cli.main()


def test_the_averaged_weights_become_a_snapshot_that_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    raw, averaged = their_weights(), their_weights()
    torch.save(checkpoint(raw, averaged, "squaredcos_cap_v2"), "model-20.pt")
    run(monkeypatch, "model-20.pt", "imported", "--num-heads", HEADS)
    assert capsys.readouterr().out == (
        "imported: U-ViT, width 16, 3 blocks, 2 heads, 2x2 patches of 3x8x8 images, from the EMA weights; trained with "
        "num_train_timesteps=1000, beta_schedule=squaredcos_cap_v2, prediction_type=epsilon\n"
    )
    network = UViT.from_pretrained("imported")
    expected = import_uvit(averaged, HEADS)
    for name, weight in expected.state_dict().items():
        assert torch.equal(weight, network.state_dict()[name])
    loaded = load_snapshot(Path("imported"), torch.device("cpu"))
    sampling = Params.model_validate(PARAMS).sampling
    samples = sample_images(loaded, objective_settings(OBJECTIVES["linear, epsilon"]), sampling, range(3), seed=0)
    assert samples.shape == (3, 3, 8, 8)


@pytest.mark.parametrize("bare", [False, True])
def test_without_averaged_weights_the_others_are_taken_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bare: bool
) -> None:
    raw = their_weights(num_classes=3)
    torch.save(raw if bare else checkpoint(raw, None), tmp_path / "model.pt")
    run(monkeypatch, tmp_path / "model.pt", tmp_path / "imported", "--num-heads", HEADS)
    said = capsys.readouterr().out
    assert "images, 3 classes, from the weights, not averaged: the file has no EMA" in said
    assert ("beta_schedule=linear" in said) != bare
    network = load_snapshot(tmp_path / "imported", torch.device("cpu"))
    assert torch.equal(network.state_dict()["head.bias"], raw["encoder_to_output.bias"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_what_ddp_and_compilation_put_before_names_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    raw = their_weights()
    wrapped = checkpoint(raw, with_prefix(raw, prefix))
    torch.save(wrapped | {"model": with_prefix(wrapped["model"], prefix)}, tmp_path / "ema.pt")
    torch.save(with_prefix(raw, prefix), tmp_path / "bare.pt")
    for name in ("ema", "bare"):
        run(monkeypatch, tmp_path / f"{name}.pt", tmp_path / name, "--num-heads", HEADS)
        network = load_snapshot(tmp_path / name, torch.device("cpu"))
        assert torch.equal(network.state_dict()["head.bias"], raw["encoder_to_output.bias"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "model.pt: no such file"),
        (b"", "model.pt: not a checkpoint of tensors: "),
        (b"no checkpoint", "model.pt: not a checkpoint of tensors: "),
        (torch.zeros(3), "model.pt: not a checkpoint: Tensor; allowed: a dictionary"),
        (print, "model.pt: not a checkpoint of tensors: "),  # a function: loading it would run code
        ({"step": 3}, "model.pt: step is no tensor; allowed: weights alone, or beside others as `ema` or `model`"),
        ({"model": {"norm.weight": torch.zeros(3)}}, "model.pt: encoder.patch_embed.proj.weight is missing"),
        (
            {"model": {"model.encoder.norm.weight": torch.zeros(3), "extra": torch.zeros(3)}},
            "model.pt: extra: neither a weight of the network nor of the noise schedule",
        ),
    ],
)
def test_a_file_that_is_none_of_theirs_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: Any, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        Path("model.pt").write_bytes(content)
    elif content is not None:
        torch.save(content, "model.pt")
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "model.pt", "imported")
    said = capsys.readouterr().err
    assert said.startswith(f"error: {says}")
    assert said.count("\n") == 1
    assert not Path("imported").exists()


def test_a_folder_that_exists_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(their_weights(), tmp_path / "model.pt")
    (tmp_path / "imported").mkdir()
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, tmp_path / "model.pt", tmp_path / "imported", "--num-heads", HEADS)
    assert capsys.readouterr().err == f"error: {tmp_path / 'imported'}: exists; allowed: a new folder\n"
    assert not list((tmp_path / "imported").iterdir())
