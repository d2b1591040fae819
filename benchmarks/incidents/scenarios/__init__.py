"""One file per incident: its `INCIDENT`. What is in this folder is run; nothing has to be listed."""

import importlib
import pkgutil

from benchmarks.incidents.incident import Incident


def incidents() -> dict[str, Incident]:
    """All of them by name, in the order of their files."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return {module.INCIDENT.name: module.INCIDENT for module in modules}
