"""The bench verb: what this project does on this machine, compared with the usual scripts."""


def main(arguments: list[str]) -> None:
    """Measure reading and tokenizing for `data ...`, and else training. Nothing of it stays on the disk."""
    from maketune.bench import data, training

    if arguments[:1] == ["data"]:
        data.run(arguments[1:])
    else:
        training.run(arguments)
