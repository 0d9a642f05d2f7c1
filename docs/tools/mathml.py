"""Equations of the documentation: a fenced block `math`, in LaTeX, becomes MathML, which browsers draw on their own.

GitHub draws the same blocks. A hook of MkDocs.
"""

from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Tell the extension that reads fenced blocks what to do with `math`."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences.append({"name": "math", "class": "math", "format": mathml})
    return config


def mathml(source: str, *_: Any, **__: Any) -> str:
    """The equation as a paragraph of HTML.

    Args:
        source: LaTeX, without dollar signs.
    """
    return f"<p>{convert(source, display='block')}</p>"
