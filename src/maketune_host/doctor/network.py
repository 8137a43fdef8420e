"""What a first run downloads from, and whether it can be reached."""

from __future__ import annotations

import http.client
import os
import sys
import threading
import time
import urllib.error
import urllib.request

from maketune_host.process import ask

INDEX = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"


def registry(base_image: str) -> str:
    """The address of a base image's registry."""
    first, slash, _ = base_image.partition("/")
    named = slash and ("." in first or ":" in first or first == "localhost")
    return "https://{}/v2/".format(first if named else "registry-1.docker.io")


def addresses(base_image: str, seconds: float) -> dict[str, str]:
    """What to ask: the base image's registry, the index that uv takes, the Hub."""
    named = (os.environ.get(key) for key in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"))  # as uv is called
    index = next(filter(None, named), "") or ask([sys.executable, "-c", INDEX], seconds).output
    urls = {"image registry": registry(base_image)}
    if index:
        urls["package registry"] = index.rstrip("/") + "/uv/"  # the whole index is a long page
    return {**urls, "model hub": os.environ.get("HF_ENDPOINT") or "https://huggingface.co"}


def answers(address: str, seconds: float, any_certificate: bool = False) -> bool:
    """Whether an address answers in time, name look-up included, which urllib does not limit."""
    context = "ssl._create_unverified_context()" if any_certificate else "None"
    program = f"import ssl, sys, urllib.request as u; u.urlopen(sys.argv[1], context={context}).close()"
    return ask([sys.executable, "-c", program, address], timeout=seconds).code == 0


def reach(addresses: dict[str, str], seconds: float) -> dict[str, str]:
    """Ask each address, all at once: why it did not answer, or an empty text. A proxy of the environment is used."""
    errors = dict.fromkeys(addresses, f"no answer within {seconds:g} s")

    def look(name: str) -> None:
        try:
            request = urllib.request.Request(addresses[name], method="HEAD", headers={"User-Agent": "maketune"})
            urllib.request.urlopen(request, timeout=seconds).close()
            errors[name] = ""
        except urllib.error.HTTPError:
            errors[name] = ""  # refused, but there
        except (OSError, ValueError, http.client.HTTPException) as error:
            errors[name] = str(getattr(error, "reason", error))

    # Daemons: a name that nobody resolves holds a thread for longer than any time limit.
    threads = [threading.Thread(target=look, args=(name,), daemon=True) for name in addresses]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))
    return dict(errors)
