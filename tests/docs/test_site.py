"""`make docs-site`: the strict build of the site, which loads nothing from other hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "mkdocs.yml"


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", config, "--site-dir", site]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(CONFIG, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, str]:
    return {str(path.relative_to(site)): path.read_text() for path in site.rglob("*.html")}


def test_every_page_of_docs_is_on_the_site(pages: dict[str, str]) -> None:
    files = [path for kind in ("*.md", "*.ipynb") for path in (ROOT / "docs").rglob(kind)]
    sources = {path.relative_to(ROOT / "docs").with_suffix("") for path in files}
    assert {f"{source}/index.html" for source in sources} <= set(pages)
    assert {"index.html", "contributing/index.html", "changelog/index.html", "benchmarks/index.html"} <= set(pages)


def test_readme_is_the_start_page(pages: dict[str, str]) -> None:
    assert re.search(r"<h1[^>]*>Tandem", pages["index.html"])
    assert 'href="recipe/"' in pages["index.html"], "links of the README lead to pages of the site"


def test_linked_source_files_are_pages(pages: dict[str, str]) -> None:
    assert "top_100_accuracy" in pages["files/schemas/movielens/recipe.yaml/index.html"]
    assert "files/schemas/movielens/recipe.yaml/" in pages["recipes/index.html"]


def test_api_pages_describe_methods_and_fields(pages: dict[str, str]) -> None:
    client, recipe = pages["api/client/index.html"], pages["api/recipe/index.html"]
    for name in ("Recommender.recommend", "AsyncRecommender.rate", "Tls", "results.Recommendation"):
        assert f'id="tandem_client.{name}"' in client, name
    for name in ("Recipe.name", "load_recipe", "load_schema"):
        assert f'id="recipe.{name}"' in recipe, name


def test_examples_of_docstrings_are_code(pages: dict[str, str]) -> None:
    examples = re.findall(r'<details class="example"[^>]*>(.*?)</details>', pages["api/recipe/index.html"], re.DOTALL)
    assert examples and all('class="highlight"' in each for each in examples)


def test_nothing_comes_from_other_hosts(pages: dict[str, str]) -> None:
    for name, text in pages.items():
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="([^"]+)"|<link[^>]*\shref="([^"]+)"', text)
        assert [url for pair in loaded for url in pair if re.match(r"(?:https?:)?//", url)] == [], name


@pytest.mark.parametrize("link", ["gone.md", "index.md#gone", "/absolute/"])
def test_a_dead_link_fails(link: str, tmp_path: Path) -> None:
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config |= {"docs_dir": "pages", "nav": ["index.md"], "hooks": [], "plugins": [], "extra_css": []}
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.md").write_text(f"# Page\n\n[link]({link})\n")
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0 and "contains a" in done.stderr, done.stderr
