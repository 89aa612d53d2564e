"""Writes the report and the model card of a run; `tandem report` calls it."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.console import output_to_file
from pipeline.lineage import Lineage
from pipeline.run_history import find_run
from recipe import BadInput


def write_report(workdir: Path, name: str, out: Path, card: Path | None = None) -> str:
    """Write the report of a run as HTML, and optionally its model card as Markdown.

        from commands import write_report
        write_report(Path("work/movielens"), "latest", Path("report.html"))

    Args:
        workdir: Work folder of the run.
        name: Run id or its prefix, `latest` or `previous`.
        out: HTML file.
        card: Markdown file; no model card if None.

    Returns:
        The run's id.

    Raises:
        RunError: The run does not exist.
        BadInput: A file cannot be written.
    """
    lineage = Lineage(workdir)
    run_id = find_run(workdir, name, lineage)
    files = {"--out": out, "--model-card": card}
    for flag, path in files.items():
        if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
            problem = "is a folder" if path.is_dir() else "its folder does not exist or is not writable"
            raise BadInput(f"{flag} {path}: expected a path of a writable file; {problem}.")
    # TensorFlow and TFDV log much while they start.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with output_to_file(Path(os.devnull)):
        from commands.report.gather import gather
        from commands.report.model_card import model_card
        from commands.report.page import page

        facts = gather(workdir, run_id, lineage)
        texts = {out: page(facts, out), **({card: model_card(facts)} if card is not None else {})}
    for path, text in texts.items():
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    return run_id
