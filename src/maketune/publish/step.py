"""The publish step: model/ to a repository of the Hub. The launcher has shown what goes, and asked."""

from pathlib import Path

from maketune.core.progress import say
from maketune.core.run import Run, named
from maketune.core.settings import load_config
from maketune.report import card
from maketune_common.errors import Unfit, UserError


def publish(run_name: str, to: str, public: bool) -> None:
    """Push the run's model/ to the repository `to` in one commit, with a card that loads from there; print its address.

    A new repository is private unless `public`. Raises UserError for a run without a model, a name that is none, no
    token, a token that may not, and a repository that is public where `public` is not asked for; Unfit where the Hub
    does not answer.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    path = Path("runs") / named(run_name)
    if not (path / "model/config.json").exists():
        raise UserError(f"{path}: no model yet", f"make train RUN={path.name}")
    if not card.HUB_ID.fullmatch(to):
        raise UserError(f"--to {to}: not a repository's name", "owner/name, as on the Hub")
    if not get_token():
        raise UserError("no token for the Hub", "HF_TOKEN=... make publish ...; one that may write to the repository")
    run = Run(path, load_config(str(path / "config.yaml"), []))
    with run.step("publish"):
        files = [each for each in sorted(run.model.rglob("*")) if each.is_file() and each != run.model / "README.md"]
        content = card.text(run, to).encode("utf-8", "backslashreplace")
        operations = [CommitOperationAdd(str(each.relative_to(run.model)), str(each)) for each in files]
        operations.append(CommitOperationAdd("README.md", content))
        try:
            api = HfApi()
            api.create_repo(to, private=not public, exist_ok=True)
            if not public and not api.repo_info(to).private:
                raise UserError(f"{to} is there already, and public", "another name, or say so: --public")
            say(f"publish: {len(operations)} files to {to}")
            done = api.create_commit(to, operations, commit_message=f"Run {run.name}")
        except HfHubHTTPError as error:
            raise UserError(
                f"the Hub refuses {to}: {str(error).splitlines()[0]}", "does the token write there? is the name yours?"
            ) from None
        except OSError as error:  # no network, a proxy, offline: huggingface_hub has no one class for it
            if error.errno is not None and not isinstance(error, (ConnectionError, TimeoutError)):
                raise
            raise Unfit(
                f"the Hub cannot be reached: {(str(error) or type(error).__name__).splitlines()[0]}",
                "mend the network (HF_HUB_OFFLINE=1 forbids it); nothing is half there: it is one commit",
            ) from None
    print(done.commit_url)
