"""The pages with their tables and figures: read what the stages left, analyse it, write."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from maskdm.config.params import Params
from maskdm.config.reading import load_params, recipe_of
from maskdm.config.recipe import Recipe
from maskdm.config.study import DEFAULT, Part, Study, load_study
from maskdm.datasets.prepared import PreparedData
from maskdm.reporting import analysis, budgets, figures, law, methods_sections, page, study_sections
from maskdm.reporting.analysed import Analysed, analyse
from maskdm.reporting.analysis import Records
from maskdm.runtime.errors import MaskDMError
from maskdm.runtime.files import reading, write_csv, write_text
from maskdm.runtime.paths import (
    PREPARED,
    REFERENCE_RECORD,
    ROOT,
    STEP_TIME,
    STUDY,
    STUDY_REPORTS,
    STUDY_STEP_TIME,
    places_of,
    samples_file,
    stage_folder,
)
from maskdm.runtime.units import si
from maskdm.tracking.records import StepTimes, read_records, read_step_times

REPORTS = ROOT / "reports"
MASKS = ROOT / "runs" / "masks.npz"
WRITTEN = "`dvc repro` writes it"
PANEL = 64  # images of a sample grid
MASKED_IMAGES = 10  # columns of the figure of the masks
BUDGETS = "budgets"  # the name of a figure
TABLES = ("arms", "trials")  # of the study; the curves are in the records


# --- the default comparison ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Default:
    """The comparison of `params.yaml` with all that its pages are made from."""

    recipe: Recipe
    images: PreparedData
    records: Records
    times: StepTimes
    reference: dict[str, Any]  # `records/reference.json`
    found: Analysed

    @property
    def num_parameters(self) -> int | None:
        """Of the network; None: not known."""
        params = self.found.params
        record, _ = analysis.find_trial(DEFAULT, params.baseline, params.seeds[0], self.records)
        return record.params.get("num_parameters")


def open_default() -> Default:
    """Read and analyse what the stages of the default comparison left.

    Raises:
        MaskDMError: a file is missing or damaged, or does not fit the others.
    """
    params = load_params(ROOT / "params.yaml")
    images, recipe = PreparedData.open(PREPARED), recipe_of(params, ROOT)
    records, times = read_records(ROOT, ("default",)), read_step_times(STEP_TIME)
    reference = read_reference(REFERENCE_RECORD, WRITTEN)
    return Default(recipe, images, records, times, reference, analyse(DEFAULT, params, records, times, reference))


def read_reference(path: Path, remedy: str) -> dict[str, Any]:
    """The record of a reference, with the floor.

    Raises:
        MaskDMError: it is missing or damaged.
    """
    with reading(path, remedy):
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def write_default() -> list[Path]:
    """Write `reports/report.md` and `reports/default/`; returns the page and its figures.

    Raises:
        MaskDMError: a file is missing or damaged, or does not fit the others.
    """
    opened = open_default()
    found, params = opened.found, opened.found.params
    with figures.style():
        drawn = {
            "curves": found.draw_curves(),
            "against": figures.stacked({"": found.against}),
            "samples": figures.sample_grids(read_samples(params, opened.images)),
            "masks": figures.masks(read_masks(params, opened.images)),
        }
    text = page.default_page(
        params,
        opened.recipe,
        opened.images.info,
        opened.num_parameters,
        opened.times,
        found.arms,
        found.metric,
        opened.reference,
        found.measured_with,
        [f"{DEFAULT}/{name}" for name in drawn],
    )

    folder = REPORTS / DEFAULT
    for name, figure in drawn.items():
        figures.save(figure, folder / name)
    tables = {"arms": found.arms, "trials": found.trials, "means": analysis.means(found.curves)}
    for name, frame in tables.items():
        write_csv(folder / f"{name}.csv", frame)
    for arm, numbers in analysis.metrics(found.arms, found.metric).items():  # a row each in `dvc metrics show`
        write_text(folder / "metrics" / f"{arm}.json", json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    write_text(REPORTS / "report.md", text)
    return [REPORTS / "report.md", *(folder / f"{name}.png" for name in drawn)]


def read_samples(params: Params, data: PreparedData) -> dict[str, np.ndarray]:
    """The samples of each arm with the first seed, and as many held-out images.

    Raises:
        MaskDMError: an arm has no samples.
    """
    panels = {}
    for arm in analysis.ordered_arms(params):
        path = stage_folder("evaluate", arm, params.seeds[0]) / samples_file(1)
        with reading(path, WRITTEN):
            panels[arm] = np.load(path)[:PANEL]
    return panels | {"real, held out": data.heldout[:PANEL]}


def read_masks(params: Params, data: PreparedData) -> dict[str, np.ndarray]:
    """Training images, and below them what the network sees of them in every phase that shows less.

    Returns:
        Title -> uint8 [images, C, H, W].

    Raises:
        MaskDMError: the file of masks is missing or lacks one.
    """
    with reading(MASKS, WRITTEN), np.load(MASKS) as file:
        masks = dict(file)
    images = data.train[:MASKED_IMAGES]
    rows = {"training images": images}
    for arm, phases in params.arms.items():
        less = [(index, phase) for index, phase in enumerate(phases) if phase.shows_less]
        for index, phase in less:
            title = arm if len(less) == 1 else f"{arm}, phase {index + 1}"
            for number, group in enumerate(phase.groups):
                key = f"{arm}/{index}/{number}"
                if group.mask and key not in masks:
                    raise MaskDMError(f"{MASKS}: {key} is missing; {WRITTEN}")
                kept = masks[key][: len(images)] if group.mask else None
                apart = phase.method is not None and phase.method.needs_blocks  # some blocks see all there is
                rows[f"{title}: {page.group_in_words(phase, group, params.grid)}"] = figures.seen(
                    images, kept, 1 if apart else group.factor, faded=apart
                )
    return rows


# --- the study ----------------------------------------------------------------------------------------------


def analyse_study(default: Params, study: Study, names: Iterable[str]) -> list[Analysed]:
    """Those of the parts `names` whose trials are all recorded, in that order.

    Those of a series are analysed from the smallest budget on: each is seen beside the ones before it.

    Raises:
        MaskDMError: a file is missing or damaged, or does not fit the others.
    """
    records = read_records(ROOT, ("study",))
    params, parts = {name: study.params(name, default) for name in names}, study.all_parts
    complete = [name for name, own in params.items() if analysis.is_complete(name, own, records)]
    if not complete:
        return []
    times = read_step_times(STUDY_STEP_TIME)
    found: dict[str, Analysed] = {}
    for name in sorted(complete, key=lambda name: params[name].budget.train_flops):
        series, budget = parts[name].series, params[name].budget.train_flops
        shorter = [
            each.trials
            for key, each in found.items()
            if series and parts[key].series == series and params[key].budget.train_flops < budget
        ]
        found[name] = analyse(name, params[name], records, times, shorter=shorter, data_set=parts[name].set)
    return [found[name] for name in complete]


def write_study() -> None:
    """Write the pages of the study, `reports/study.md` and others, and `reports/study/`, of the parts that were run.

    Raises:
        MaskDMError: a file is missing or damaged, or does not fit the others.
    """
    study, times = load_study(STUDY), read_step_times(STUDY_STEP_TIME)
    parts = study.all_parts
    found = analyse_study(load_params(ROOT / "params.yaml"), study, parts)
    for name, head in study_sections.HEADS.items():
        own = {key: part for key, part in parts.items() if part.page == name}
        write_text(REPORTS / f"{name}.md", study_page(name, head, own, found, times))
    for table in TABLES if found else ():
        write_csv(STUDY_REPORTS / f"{table}.csv", pd.concat([getattr(each, table) for each in found]))


def study_page(
    page_name: str, head: str, parts: Mapping[str, Part], analysed: Sequence[Analysed], times: StepTimes
) -> str:
    """A page: every question in a row of a table, or in a line, then at length."""
    done = [found for found in analysed if found.name in parts]
    asked = [(parts[found.name].question, found) for found in done]
    sections = [write_part(parts[found.name], found) for found in done]
    answers: list[page.Answer] = []
    if done:
        with figures.style():
            panels = {question: found.against for question, found in asked}
            figures.save(figures.stacked(panels), STUDY_REPORTS / f"{page_name}_against")
    if page_name == "study":
        answers = study_answers(done, analysed)
    elif page_name == "methods":
        answers = methods_answers(done)
    blocks = [
        head,
        f"{page.as_table(page.best_columns(asked))}\n\n{study_sections.IN_SHORT}" if done else "",
        "\n".join(f"- {answer.in_short}" for answer in answers),
        f"![against](study/{page_name}_against.png)\n\n{study_sections.AGAINST}" if done else "",
        *sections,
        *(answer.section for answer in answers),
        study_sections.missing([name for name in parts if name not in {found.name for found in done}]),
        define(done, times) if done else "",
        page.in_numbers("study", [f"{name}.csv" for name in TABLES]) if done else "",
    ]
    return "\n\n".join(filter(None, blocks)) + "\n"


def study_answers(done: Sequence[Analysed], analysed: Sequence[Analysed]) -> list[page.Answer]:
    """What the study's page says beside its parts; `analysed` are those of all pages."""
    if not done:
        return write_others()
    params, trials = {found.name: found.params for found in done}, {found.name: found.trials for found in done}
    return [*write_budgets(analysed), study_sections.agreement_answer(params, trials), *write_others()]


def write_budgets(analysed: Sequence[Analysed]) -> list[page.Answer]:
    """What the page says of arms that were trained with several budgets, if there are some, and the figure."""
    gained = budgets.most_measured(budgets.gains(analysed))
    if not len(gained):
        return []
    lines = law.trends(gained, analysed)
    with figures.style():
        figures.save(law.draw(gained, lines, analysed), STUDY_REPORTS / BUDGETS)
    return [law.law_answer(gained, lines, f"study/{BUDGETS}")]


def methods_answers(done: Sequence[Analysed]) -> list[page.Answer]:
    """What the methods' page says beside its parts: the first part is that of all methods."""
    if not done:
        return []
    compared = [methods_sections.Compared(found.params, found.arms, found.data_set) for found in done]
    return [
        methods_sections.networks_answer([part for part in compared if part.data_set is None]),
        *methods_sections.data_sets_answers(compared),
        methods_sections.claims_answer(compared[0]),
    ]


def define(done: Sequence[Analysed], times: StepTimes) -> str:
    """What the numbers of all parts mean."""
    first, measures = done[0], set().union(*(page.shown(found.arms) for found in done))
    return page.definitions(first.params, first.metric, times, first.measured_with, measures)


def write_part(part: Part, found: Analysed) -> str:
    """Write the curves of a part, if it has some; returns its section of the page."""
    drawn = []
    if len(found.params.budget.snapshots) > 1:  # samples that were judged along the way
        drawn.append(f"{found.name}_curves")
        with figures.style():
            figures.save(found.draw_curves(), STUDY_REPORTS / drawn[0])
    budget, seeds = found.params.budget.train_flops, ", ".join(map(str, found.params.seeds))
    blocks = [
        f"The paper: {part.paper}",
        *page.comparison_blocks(found.params, found.arms, found.metric, [f"study/{name}" for name in drawn]),
        *([] if part.set is None else [floor_of(part.set, found)]),
        f"{si(budget, 'FLOPs')} an arm; seeds {seeds}; part `{found.name}`.",
    ]
    return page.section_of(part.question, page.headline(found.params, found.arms, found.images), blocks)


def floor_of(data_set: str, found: Analysed) -> str:
    """What real images of another data set get.

    Raises:
        MaskDMError: its record is missing or damaged.
    """
    remedy = f"`dvc repro study/dvc.yaml:set_reference@{data_set}` writes it"
    reference = read_reference(places_of(data_set).record, remedy)
    return page.floor(reference, found.metric, found.params.evaluation.samples)


def write_others() -> list[page.Answer]:
    """What the page says of the tables of other stages, as far as they are there."""
    paths = {STUDY_REPORTS / file: write for file, write in study_sections.OTHERS.items()}
    found = {path: pd.read_csv(path) for path in paths if path.is_file()}
    return [paths[path](table) for path, table in found.items()]
