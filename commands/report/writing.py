"""`tandem report`: makes the page and the model card of a run."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.console import output_to_file
from pipeline.lineage import Lineage
from pipeline.runs import find_run
from recipe import BadInput


def write_report(workdir: Path, name: str, out: Path, card: Path | None = None) -> str:
    """Writes the page of a run, and its model card as Markdown where asked for.

    Args:
        workdir: Folder of the run.
        name: The run, as `find_run` takes it.
        out: The HTML file.
        card: The Markdown file.

    Returns:
        The run's id.

    Raises:
        RunError: There is no such run.
        BadInput: A file cannot be written.
    """
    lineage = Lineage(workdir)
    run_id = find_run(workdir, name, lineage)
    files = {"--out": out, "--model-card": card}
    for flag, path in files.items():
        if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
            found = "is a folder" if path.is_dir() else "lies in a folder that is not there or cannot be written"
            raise BadInput(f"{flag} {path}: it {found}; name a file that can be written.")
    # TensorFlow and TFDV tell a lot while they start and load.
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
