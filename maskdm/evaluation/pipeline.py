"""A trained network as a pipeline of diffusers: `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`.

The folder names this class through a file `pipeline.py` of its own, since diffusers knows no other pipelines by name.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from pydantic import TypeAdapter

from maskdm.config.objective import ObjectiveSettings
from maskdm.config.params import Sampling
from maskdm.evaluation.sampling import denoise, draw_noise, to_pixels
from maskdm.networks.network import Network
from maskdm.networks.patches import unpatchify


class MaskDMPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers ships no types
    """Draws images from a network.

    Args:
        network: with the weights to sample from.
        objective: what it was trained with, as in a recipe.
        sampling: how images are drawn if a call does not say, as in `params.yaml`.
    """

    def __init__(
        self, network: Network, objective: dict[str, Any] | None = None, sampling: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.register_modules(network=network)
        self.register_to_config(objective=objective, sampling=sampling)

    @torch.no_grad()
    def __call__(
        self,
        num_images: int = 1,
        labels: Sequence[int] | None = None,
        generators: Sequence[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
    ) -> ImagePipelineOutput:
        """Draw images; what is None is as in the pipeline's `sampling`.

        Args:
            num_images: how many.
            labels: classes `[num_images]`, for a network with classes; None: all classes in turn.
            generators: of the noise, one an image, on the CPU; None: of PyTorch's global one.
            num_inference_steps: of the sampler.
            guidance_scale: of classifier-free guidance; 1: none.
            sampler: one that knows the objective.

        Returns:
            `.images`: PIL images.

        Raises:
            ValueError: a setting is not usable, or the sampler does not know the objective.
        """
        changes = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "sampler": sampler}
        given = {key: value for key, value in changes.items() if value is not None}
        settings = Sampling.model_validate({**self.config.sampling, **given})
        objective: ObjectiveSettings = TypeAdapter(ObjectiveSettings).validate_python(dict(self.config.objective))
        settings.check_objective(objective)
        network = self.network.eval()
        if generators is None:
            seeds = torch.randint(2**62, (num_images,)).tolist()
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        chosen = None
        if network.num_classes is not None:
            cycle = [index % network.num_classes for index in range(num_images)]
            chosen = torch.tensor(cycle if labels is None else list(labels), device=self.device)
        noise = torch.stack([draw_noise(network, random) for random in generators])
        tokens = denoise(network, objective, settings, noise, generators, chosen)
        pixels = to_pixels(unpatchify(tokens, network.patch_size, network.grid)).permute(0, 2, 3, 1)
        return ImagePipelineOutput(images=self.numpy_to_pil(pixels.numpy() / 255))
