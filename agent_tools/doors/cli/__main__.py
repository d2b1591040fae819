"""``python -m agent_tools.doors.cli`` is the command line too."""

from . import app

app()
