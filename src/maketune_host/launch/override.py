"""What differs from launch to launch, for compose to merge over compose.yaml."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from maketune_host.launch import inputs
from maketune_host.launch.launch import ONLINE_STEPS, Launch, variables

NETWORK = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "HF_ENDPOINT")
BUNDLE = "/run/maketune-ca.pem"
TOKEN = "/run/secrets/hf_token"


def service_name(verb: str) -> str:
    """The service of compose.yaml that runs a verb."""
    return "data" if verb in ONLINE_STEPS else "step"


def override(launch: Launch, verb: str, user: str, scratch: Path, token: Path | None = None) -> dict[str, Any]:
    """The override of compose.yaml: image, user, environment, mounts, GPUs and, with a network, proxies and token.

    `scratch` is the launch's own folder, into which the certificates are copied if it exists.
    """
    told = launch.told
    named = (told.config, told.model, *inputs.paths(told.data), *inputs.paths(told.test_data))
    mounts = dict.fromkeys(path for path in named if os.path.isabs(path))
    values = variables(launch, verb)
    volumes = [_mount(os.path.realpath(path), path) for path in mounts]
    service: dict[str, Any] = {"image": launch.tag, "user": user, "environment": values, "volumes": volumes}
    content: dict[str, Any] = {"services": {service_name(verb): service}}
    if user == f"{os.getuid()}:{os.getgid()}":  # for files that the caller may read through a group
        service["group_add"] = [str(group) for group in os.getgroups()]
    if verb == "monitor":
        service["pid"] = "host"  # NVML names the host's processes
    if not launch.on_cpu:
        _add_gpus(launch, service)
    if verb in ONLINE_STEPS:
        values.update((name, os.environ[name]) for name in NETWORK if os.environ.get(name))
        _add_certificates(service, scratch)
    if verb in ONLINE_STEPS and token:
        values["HF_TOKEN_PATH"] = TOKEN
        service["secrets"] = ["hf_token"]
        content["secrets"] = {"hf_token": {"file": str(token)}}
    return _literal(content)


def _mount(source: str, target: str) -> dict[str, Any]:
    bind = {"create_host_path": False, "selinux": "z"}
    return {"type": "bind", "source": source, "target": target, "read_only": True, "bind": bind}


def _add_gpus(launch: Launch, service: dict[str, Any]) -> None:
    """Ask for the GPUs. Never by the service-level `gpus:`, which compose before 2.30 ignores in silence."""
    driver, uuids = launch.docker.gpu_driver, launch.uuids()
    if driver == "runtime":
        service["runtime"] = "nvidia"
        service["environment"]["NVIDIA_VISIBLE_DEVICES"] = ",".join(uuids) or "all"
        return
    device: dict[str, Any] = {"driver": "nvidia", "capabilities": ["gpu"]}
    if driver == "cdi":
        device.update(driver="cdi", device_ids=["nvidia.com/gpu=" + uuid for uuid in uuids or ["all"]])
    else:
        device.update({"device_ids": uuids} if uuids else {"count": "all"})
    service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}


def _add_certificates(service: dict[str, Any], scratch: Path) -> None:
    """Mount a copy of the caller's certificate bundle: `selinux: z` would relabel the system's own file."""
    named = [os.environ.get(key, "") for key in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")]
    bundle = next((path for path in named if os.path.isfile(path)), "")
    if not bundle:
        return
    if scratch.exists():
        shutil.copyfile(bundle, str(scratch / "ca.pem"))
    service["volumes"].append(_mount(str(scratch / "ca.pem"), BUNDLE))
    service["environment"].update(SSL_CERT_FILE=BUNDLE, REQUESTS_CA_BUNDLE=BUNDLE)


def _literal(content: Any) -> Any:
    """The same with every `$` doubled: compose would fill in variables."""
    if isinstance(content, dict):
        return {key: _literal(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_literal(value) for value in content]
    return content.replace("$", "$$") if isinstance(content, str) else content
