"""The schema of the parts of `study/params.yaml`: arms that are compared with each other, with several seeds."""

from typing import Annotated, Self

from pydantic import Field, RootModel, model_validator

from maskdm.config import Arm, MaskedPhase, Name, Params, Phase, Positive, Schema, validated


class Part(Schema):
    """One question: arms of equal compute, each trained with every seed. Everything else is that of `params.yaml`."""

    question: str  # as a heading of the report
    paper: str  # what the paper says to it, in a sentence
    train_flops: Annotated[float, Field(gt=0)]  # of every arm, pre-training counted in
    snapshots: tuple[Annotated[float, Field(gt=0, le=1)], ...]  # shares of the compute at which samples are judged
    heldout_points: Positive  # at which the held-out loss is measured, in place of params.yaml's `heldout.points`
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    finetune: Phase  # of every arm, with the compute that its masked phases leave
    baseline: Name  # the arm that the others are compared with
    arms: dict[Name, tuple[MaskedPhase, ...]]  # masked phases in sequence; none: training from scratch

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.baseline not in self.arms:
            raise ValueError(f"baseline={self.baseline}; allowed: a key of arms ({', '.join(self.arms)})")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}; allowed: each seed once")
        return self

    def comparison(self, params: Params) -> Params:
        """The settings `params` with this part's arms and compute.

        Raises:
            MaskDMError: an arm does not fit the settings.
        """
        changed = {
            "budget": {"train_flops": self.train_flops, "snapshots": self.snapshots},
            "pretrain": {arm: [phase.model_dump() for phase in phases] for arm, phases in self.arms.items()},
            "arms": {arm: Arm(pretrain=arm, finetune=self.finetune).model_dump() for arm in self.arms},
            "baseline": self.baseline,
        }
        return validated(Params, params.model_dump() | changed, where=f"part {self.question!r}")


class Parts(RootModel[dict[Name, Part]]):
    """All parts, by name."""
