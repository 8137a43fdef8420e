"""The report step: a page about one run, or several side by side, that needs nothing but itself."""

from pathlib import Path

from maketune.core.files import write_whole
from maketune.core.run import named
from maketune_common import contract
from maketune_common.errors import UserError


def report(others: list[str]) -> None:
    """Write runs/RUN/report.html for the run that MAKETUNE_RUN names, and print its path; with `others` beside it, the
    page is RUN's report-with-OTHERS.html. Nothing else in a run changes. Raises UserError for no run, none trained."""
    from maketune.report import page, pictures, view

    names = list(dict.fromkeys(map(named, (contract.told().run, *others))))
    if len(names) > pictures.COLORS:
        raise UserError(f"{len(names)} runs: a page shows {pictures.COLORS} at most", "leave some out of RUN")
    views = []
    for name in names:
        path = Path("runs") / name
        if not path.is_dir():
            raise UserError(f"there is no run {path}", f"make train RUN={name}")
        views.append(view.view(path))
        if not views[-1].history.series:
            raise UserError(f"{path}: no metrics yet, so there is nothing to report", f"make train RUN={name}")
    target = views[0].path / file_name(names)
    write_whole(target, page.render(views))
    print(target)


def file_name(names: list[str]) -> str:
    """report.html for one run; for several a name that tells which, as far as file names go."""
    if len(names) == 1:
        return "report.html"
    together = "-".join(names[1:])
    return f"report-with-{together if len(together.encode()) <= 200 else f'{len(names) - 1}-others'}.html"
