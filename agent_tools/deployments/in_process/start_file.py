"""Read the configuration that in-process LMCache starts with: the file of ``LMCACHE_CONFIG_FILE``, or ``LMCACHE_*`` variables."""

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from agent_tools.errors import SettingsError
from agent_tools.plain import plain

PREFIX = "LMCACHE_"
_VARIABLE = re.compile(rf"^\s*(?:export\s+|-\s+)?{PREFIX}([A-Z0-9_]+)\s*=(.*)$")
_OTHER = frozenset({"config_file", "log_level", "track_usage", "disable_banner"})
"""Variables that are no settings of the cache."""


def read_start_file(path: Path) -> dict[str, Any]:
    """Return the settings of a YAML file or of a file with ``LMCACHE_<NAME>=value`` lines, by LMCache's lower-case names.

    Raises:
        SettingsError: The file cannot be read, or is neither.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {path}: {error}; name LMCache's YAML file or a file of LMCACHE_* variables") from error
    found = [match for line in text.splitlines() if (match := _VARIABLE.match(line))]
    if found:
        pairs = ((name.lower(), _value(value, path)) for name, value in (match.groups() for match in found))
        return {name: value for name, value in pairs if name not in _OTHER}
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is neither YAML nor LMCACHE_* variables: {plain(error, 200)}") from error
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise SettingsError(f"{path} holds no settings of LMCache: give a YAML file of names and values, or LMCACHE_* variables")
    return settings


def _value(text: str, path: Path) -> Any:  # noqa: ANN401  a text, number or truth value
    """Return the value of a variable as LMCache reads it: a number, a truth value, JSON or text."""
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise SettingsError(f"{path} has a value that is not closed: {plain(text)}") from error
    value = " ".join(words)
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value
