"""The report step: one page, with nothing outside it, about a run or about several side by side."""

from maketune.core.files import write_whole
from maketune.core.run import named
from maketune_common import contract
from maketune_common.errors import UserError


def main(others: list[str]) -> None:
    """Write report.html of the run that MAKETUNE_RUN names, and print its path; nothing else in a run changes.

    With `others` beside it, the page is RUN's report-with-OTHERS.html. Raises UserError for a run that does not exist
    or was never trained, and for too many of them.
    """
    from maketune.report import page, record

    names = list(dict.fromkeys(map(named, (contract.told().run, *others))))
    if len(names) > page.COLORS:
        raise UserError(f"{len(names)} runs: a page shows {page.COLORS} at most", "leave some out of RUN")
    records = []
    for name in names:
        path = contract.RUNS / name
        if not path.is_dir():
            raise UserError(f"there is no run {path}", f"make train RUN={name}")
        records.append(record.read(path))
        if not records[-1].history.series:
            raise UserError(f"{path} has no metrics yet, so there is nothing to report", f"make train RUN={name}")
    target = records[0].files.report.with_name(file_name(names))
    write_whole(target, page.render(records))
    print(target)


def file_name(names: list[str]) -> str:
    """report.html for one run; for several, a name that lists the others if it does not become too long."""
    if len(names) == 1:
        return "report.html"
    others = "-".join(names[1:])
    return f"report-with-{others if len(others.encode()) <= 200 else f'{len(names) - 1}-others'}.html"
