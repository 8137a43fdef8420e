"""The bench verb: what this project does on this machine against the usual scripts, in one call."""


def bench(arguments: list[str]) -> None:
    """`data ...` measures reading and tokenizing, anything else training. Nothing of it stays on the disk."""
    if arguments[:1] == ["data"]:
        from maketune.bench import data as subject
    else:
        from maketune.bench import training as subject
    subject.run(arguments[1:] if arguments[:1] == ["data"] else arguments)
