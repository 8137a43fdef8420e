"""What can be wrong with a host: a small pure function each, in the order of a set-up."""

from maketune_host.doctor import system, gpu, engine  # isort: skip: registered in this order
from maketune_host.doctor.checks import Finding, judge, preflight
from maketune_host.doctor.engine import engine_finding

__all__ = ["Finding", "engine", "engine_finding", "gpu", "judge", "preflight", "system"]
