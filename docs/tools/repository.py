"""Links from the documentation into the repository: they must work on GitHub and on the site. A hook of MkDocs.

The site holds the reports beside its own pages. Of any other file it says where in the repository it is. What a report
names and no run has left is shown as text: a part of the study may not have been run yet.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PROJECT = Path(__file__).resolve().parents[2]
REPORTS = ("*.md", "*.png", "*.csv", "*.html")
LINK = re.compile(r"!?\[(?P<text>[^\]\[]*)\]\((?P<target>[^)\s:#]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reports."""
    for path in sorted(found for pattern in REPORTS for found in (PROJECT / "reports").rglob(pattern)):
        name = path.relative_to(PROJECT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links to where the site has their targets."""
    source = Path(page.file.abs_src_path or "")
    return LINK.sub(lambda link: _on_the_site(link, source, page.file.src_uri), markdown)


def _on_the_site(link: re.Match[str], source: Path, uri: str) -> str:
    target = Path(os.path.normpath(source.parent / link["target"]))
    made_by_a_run = uri.startswith("reports/")
    if not target.is_relative_to(PROJECT) or not (target.exists() or made_by_a_run):
        return link[0]  # a strict build complains of it
    place = target.relative_to(PROJECT)
    if link[0].startswith("!") and target.exists():
        return link[0]
    if place.parts[0] == "docs":
        place = place.relative_to("docs")
    elif place.parts[0] != "reports" or not target.is_file():
        return link["text"] if link["text"].startswith("`") else f"{link['text']} (`{place}`)"
    there = os.path.relpath(place, Path(uri).parent)
    return f"[{link['text']}]({there}{link['anchor'] or ''})"
