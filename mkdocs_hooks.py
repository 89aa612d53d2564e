"""Pages of the site that are no Markdown files of docs/: README, CONTRIBUTING and others, notebooks, source files.

MkDocs knows the Markdown files of docs/ alone. Before it builds, `on_files` adds the README and others, the notebooks
of docs/ and the source files that pages link to as pages, and `on_page_markdown` points links at them. A link to a file
that does not exist stays as it is, so that the strict build reports it.
"""

from __future__ import annotations

import json
import posixpath
import re
import textwrap
from pathlib import Path, PurePosixPath
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Markdown files outside docs/, and where they are on the site."""

LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")
EXAMPLE = re.compile(r"^(Example:\n)((?: {4}.*\n?|\n(?= {4}))+)", re.MULTILINE)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".pbtxt": "textproto", ".proto": "proto"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds `PAGES`, the notebooks, and each source file that a page links to, as generated pages."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text()))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        target = _target(f"docs/{notebook.src_uri}")
        page = File.generated(
            config, target, content=_notebook(notebook.content_string), inclusion=InclusionLevel.NOT_IN_NAV
        )
        files.append(page)
    linked = {
        path
        for file in files.documentation_pages()
        for link in LINK.findall(file.content_string)
        if (path := _path(file.src_uri, link)) is not None
    }
    for path in sorted(linked):
        if files.get_file_from_path(_target(path)) is None:
            page = File.generated(config, _target(path), content=_listing(path), inclusion=InclusionLevel.NOT_IN_NAV)
            files.append(page)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links to files of the repository at their pages."""
    place = posixpath.dirname(page.file.src_uri)

    def replaced(match: re.Match[str]) -> str:
        path = _path(page.file.src_uri, match[1])
        return match[1] if path is None else posixpath.relpath(_target(path), place or ".")

    return LINK.sub(replaced, markdown)


class CodeExamples(griffe.Extension):
    """Extension for mkdocstrings: shows the section `Example` of a docstring as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Puts the lines of the section into a fence."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(_fenced, obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Does the same for a package, which is no object to griffe."""
        self.on_object(obj=pkg)


def _fenced(example: re.Match[str]) -> str:
    code = textwrap.dedent(example[2]).strip("\n")
    return example[1] + textwrap.indent(f"```python\n{code}\n```\n", "    ")


def _source(page: str) -> str:
    """A page's path in the repository."""
    return {target: source for source, target in PAGES.items()}.get(page, f"docs/{page}")


def _path(page: str, link: str) -> str | None:
    """The file of the repository that a page links to; None for a URL and for what does not exist."""
    if ":" in link:
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(_source(page)), link))
    return path if not path.startswith("..") and (ROOT / path).is_file() else None


def _target(path: str) -> str:
    """Where a file of the repository is on the site."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))
    return f"files/{path}.md"


def _notebook(text: str) -> str:
    """A page with the cells of a notebook."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join(parts) + "\n"


def _listing(path: str) -> str:
    """A page that shows a source file."""
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text
    fence = "`" * (1 + max((len(each) for each in re.findall(r"`{3,}", text)), default=2))
    return f"# {path}\n\n{fence}{LANGUAGES.get(PurePosixPath(path).suffix, 'text')}\n{text}{fence}\n"
