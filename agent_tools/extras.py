"""How to install an extra, for messages: the package is on no index, so its bare name installs nothing."""


def installing(extra: str) -> str:
    """Return what to do to get an extra, as the end of a sentence."""
    return f"install the extra `{extra}`: pip install -e '.[{extra}]' in a checkout, or pip install 'PATH_OF_THE_WHEEL[{extra}]'"
