"""The publish step: model/ to a repository on the Hub. The launcher has shown the files, and asked."""

from pathlib import Path

from maketune.core.failures import first_line
from maketune.core.progress import say
from maketune.core.run import Run, named
from maketune.core.settings import load_config
from maketune.report import card
from maketune_common import contract
from maketune_common.errors import Unfit, UserError


def main(run_name: str, to: str, public: bool) -> None:
    """Push the run's model/ to the repository `to` in one commit, with a card that loads from there; print its address.

    A new repository is private unless `public`. Raises UserError for a run without a model, a wrong name, a missing or
    insufficient token, and a repository that is public although `public` is not given; Unfit without a connection.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

    files = contract.RunDirectory(contract.RUNS / named(run_name))
    if not files.trained:
        raise UserError(f"{files.path}: no model yet", f"make train RUN={files.name}")
    if not card.HUB_ID.fullmatch(to):
        raise UserError(f"--to {to}: not a repository's name", "owner/name, as on the Hub")
    if not get_token():
        raise UserError("no token for the Hub", "HF_TOKEN=... make publish ..., with a token that may write to it")
    run = Run(files.path, load_config(str(files.config), []))
    with run.step("publish"):
        paths = [path for path in sorted(run.model.rglob("*")) if path.is_file()]
        content: dict[str, Path | bytes] = {str(path.relative_to(run.model)): path for path in paths}
        content["README.md"] = card.text(run, to).encode("utf-8", "backslashreplace")
        try:
            api = HfApi()
            api.create_repo(to, private=not public, exist_ok=True)
            if not public and not api.repo_info(to).private:
                raise UserError(f"{to} exists already and is public", "choose another name, or add --public")
            say(f"publish: {len(content)} files to {to}")
            operations = [CommitOperationAdd(*item) for item in content.items()]
            commit = api.create_commit(to, operations, commit_message=f"Run {run.name}")
        except (HfHubHTTPError, HFValidationError) as error:
            hint = "check that the name is yours and that the token may write to it"
            raise UserError(f"the Hub refuses {to}: {first_line(error)}", hint) from None
        except (HTTPError, ConnectionError, TimeoutError) as error:  # offline is a ConnectionError
            raise Unfit(
                f"the Hub cannot be reached: {first_line(error)}",
                "check the network (HF_HUB_OFFLINE=1 forbids it); nothing is half published: it is one commit",
            ) from None
    print(commit.commit_url)
