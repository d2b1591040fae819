"""Starting Python in a child process that runs nothing from the working directory.

Python puts the working directory on the module search path of ``python -c`` and ``python -m``. A file there that is named like a
module would run, also in a folder that somebody else wrote, such as a cloned repository. Start a child with `python_command` and
`environment`, in a folder of our own.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_PACKAGES = str(Path(__file__).resolve().parent.parent)
"""Folder that holds the package `agent_tools` of this process."""


def python_command(code: str) -> list[str]:
    """Return the command that runs `code` in a new interpreter. `code` can use `sys` and can import `agent_tools`.

    The search path has no empty entry, which stands for the working directory (``python -P`` needs Python 3.11). The folder of
    `agent_tools` goes last, so nothing beside a checkout of it hides an installed package.
    """
    search_path = f"sys.path[:] = filter(None, sys.path); {_PACKAGES!r} in sys.path or sys.path.append({_PACKAGES!r})"
    return [sys.executable, "-c", f"import sys; {search_path}; {code}"]


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a child that runs in another folder.

    ``PYTHONPATH`` keeps its meaning: its relative entries become absolute, and its empty entries, which stand for the working
    directory, are left out. ``PYTHONSAFEPATH`` (Python 3.11) covers the interpreters that the child starts.
    """
    entries = [os.path.abspath(entry) for entry in inherited.get("PYTHONPATH", "").split(os.pathsep) if entry]  # noqa: PTH100
    return {**inherited, "PYTHONPATH": os.pathsep.join(entries), "PYTHONSAFEPATH": "1"}
