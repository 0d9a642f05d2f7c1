"""The tables of the reference, made from the code: fields, what they may be, and the comments beside them.

python -m docs.tools.reference    # renews what stands between the marks of the pages in docs/reference/

A mark is `<!-- fields of <module>.<class> -->` for a dataclass, `<!-- keys of ... -->` for a class of settings, and
`<!-- blocks of ... -->` for one with all classes that it leads to.
"""

import ast
import importlib
import inspect
import io
import json
import re
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from maskdm.config.method import MethodSettings, names, settings_class

PAGES = Path(__file__).resolve().parents[1] / "reference"
MARKED = re.compile(r"(?P<mark><!-- (?P<kind>fields|keys|blocks) of (?P<name>\S+) -->\n).*?(?=<!-- end -->)", re.S)
ORDINARY = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true` or `false`"}
BOUNDS = {"exclusiveMinimum": "above", "minimum": "from", "maximum": "to", "exclusiveMaximum": "below"}


def renewed(page: str) -> str:
    """The page with what the code says between its marks."""
    return MARKED.sub(lambda found: found["mark"] + "\n" + _content(found["kind"], found["name"]) + "\n", page)


def _content(kind: str, name: str) -> str:
    module, _, attribute = name.rpartition(".")
    owner = getattr(importlib.import_module(module), attribute)
    made = {"fields": _dataclass_table, "keys": _table, "blocks": _blocks}[kind]
    return "\n".join(made(owner))


# --- settings ------------------------------------------------------------------------------------------------


def _blocks(root: type[BaseModel]) -> Iterator[str]:
    """The table of a class of settings, then a section for each class that it leads to."""
    yield from _table(root)
    done, pending = {root}, list(_below(root))
    while pending:
        key, block = pending.pop(0)
        if block in done:
            continue
        done.add(block)
        yield from (f"### {_heading(key, block)}", "", _first_words(block), "", *_table(block))
        pending = [*_below(block), *pending]


def _below(block: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """The classes of settings that the fields of a class lead to, with the key of the field."""
    for key, field in block.model_fields.items():
        for found in _classes(field.annotation):
            yield from ((key, each) for each in _kinds(found))


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _classes(argument)


def _kinds(block: type[BaseModel]) -> list[type[BaseModel]]:
    return [settings_class(name) for name in names()] if block is MethodSettings else [block]


def _heading(key: str, block: type[BaseModel]) -> str:
    properties = block.model_json_schema()["properties"]
    kinds = [f"{name}: {found['const']}" for name, found in properties.items() if "const" in found]
    return f"`{key}: {{{kinds[0]}, ...}}`" if kinds else f"`{key}`"


def _first_words(block: type[BaseModel]) -> str:
    return _in_one_line((inspect.getdoc(block) or "").split("\n\n")[0])


def _table(block: type[BaseModel]) -> Iterator[str]:
    schema = block.model_json_schema()
    if not schema.get("properties"):
        yield from ("It has no settings.", "")
        return
    yield from ("| key | allowed | without it | meaning |", "|---|---|---|---|")
    for key, found in schema["properties"].items():
        missing = "an error" if key in schema.get("required", ()) else f"`{json.dumps(found.get('default', {}))}`"
        comment = "" if "const" in found else _of_settings(_comment(block, key))  # the heading says what the name means
        yield _row(f"`{key}`", _allowed(found), missing, comment)
    yield ""


def _of_settings(comment: str) -> str:
    """A comment in the words of YAML; another column says what is optional."""
    return re.sub(r"^optional[:,]? ?", "", comment.replace("None:", "`null`:"), flags=re.I)


def _allowed(schema: dict[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    match schema:
        case {"const": value}:
            return f"`{value}`"
        case {"enum": values}:
            return ", ".join(f"`{value}`" for value in values)
        case {"anyOf": kinds} | {"oneOf": kinds}:
            return " or ".join(dict.fromkeys(_allowed(kind) for kind in kinds))
        case {"$ref": _}:
            return "a block, see below"
        case {"type": "null"}:
            return "`null`"
        case {"type": "array", "prefixItems": items}:
            return f"[{', '.join(_allowed(item) for item in items)}]"
        case {"type": "array"}:
            return f"list of: {_allowed(schema.get('items', {}))}"
        case {"type": "object", "patternProperties": patterns}:
            return f"names, each with: {_allowed(next(iter(patterns.values())))}"
        case {"type": "object"}:
            return "keys with values"
        case {"type": kind}:
            bounds = [f"{word} {schema[bound]:g}" for bound, word in BOUNDS.items() if bound in schema]
            return " ".join([ORDINARY[kind], *bounds])
    return "any value"


# --- records -------------------------------------------------------------------------------------------------


def _dataclass_table(owner: Any) -> Iterator[str]:
    yield from ("| field | type | meaning |", "|---|---|---|")
    for field in fields(owner):
        yield _row(f"`{field.name}`", f"`{_annotation(owner, field.name)}`", _comment(owner, field.name))
    yield ""


# --- sources -------------------------------------------------------------------------------------------------


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


def _fields_of(owner: type) -> Iterator[tuple[str, ast.AnnAssign, str]]:
    """The annotated names of a class's own source, each with its node and the source."""
    source = textwrap.dedent(inspect.getsource(owner))
    [definition] = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node, source


def _annotation(owner: type, name: str) -> str:
    return next(ast.unparse(node.annotation) for found, node, _ in _fields_of(owner) if found == name)


def _comment(owner: type, name: str) -> str:
    """The comment beside a field, or else right above it, in the class that has the field of its own."""
    for each in owner.__mro__:
        if name not in inspect.get_annotations(each):
            continue
        for found, node, source in _fields_of(each):
            if found == name:
                return _comment_at(node, source)
    return ""


def _comment_at(node: ast.AnnAssign, source: str) -> str:
    lines = source.splitlines()
    comments = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    if beside := comments.get(node.end_lineno or node.lineno):
        return beside
    above: list[str] = []
    line = node.lineno - 1
    while line in comments and lines[line - 1].lstrip().startswith("#"):
        above.insert(0, comments[line])
        line -= 1
    return _in_one_line(" ".join(above))


if __name__ == "__main__":
    for path in sorted(PAGES.glob("*.md")):
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
