"""HTML that stays ours: any string that is not `Html` is text and is escaped when it becomes part of an element."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape


class Html(str):
    """Markup that this package wrote. Every other string is text."""

    __slots__ = ()


def inert(text: str) -> Html:
    """Return a string as HTML text: escaped, without control characters and lone surrogates."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return Html(escape("".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in whole)))


def tag(name: str, *children: str, kind: str = "") -> Html:
    """Return an element, with a CSS class if `kind` is given. Children that are not `Html` are escaped."""
    inside = joined(child if isinstance(child, Html) else inert(child) for child in children)
    return Html(f'<{name} class="{kind}">{inside}</{name}>' if kind else f"<{name}>{inside}</{name}>")


def link(words: str, address: str) -> Html:
    """Return a link. The address must be our own."""
    return Html(f'<a href="{inert(address)}">{inert(words)}</a>')


def joined(parts: Iterable[Html]) -> Html:
    """Return elements joined together."""
    return Html("".join(parts))


def section(title: str, *parts: Html) -> Html:
    """Return parts under a heading; empty if all parts are empty."""
    return joined((tag("h2", title), *parts)) if any(parts) else Html()


def card(*parts: str) -> Html:
    """Return parts that belong together, in one frame."""
    return tag("section", *parts, kind="card")


def badge(words: str, kind: str = "") -> Html:
    """Return a word that stands out."""
    return tag("span", words, kind=f"badge {kind}".strip())


def listed(items: Iterable[str], kind: str = "") -> Html:
    """Return a list; empty if there are no items."""
    lines = [tag("li", item) for item in items]
    return tag("ul", *lines, kind=kind) if lines else Html()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """Return a table that scrolls on a narrow screen; empty without rows. All columns but the first hold figures."""
    cells = [_row("th", head), *(_row("td", row) for row in rows)]
    return tag("div", tag("table", *cells), kind="scroll") if rows else Html()


def facts(given: Mapping[str, str]) -> Html:
    """Return names with their facts. Names without a fact are left out."""
    return tag("dl", *(joined((tag("dt", name), tag("dd", fact))) for name, fact in given.items() if fact))


def folded(summary: str, *parts: Html) -> Html:
    """Return parts that are hidden until the reader opens them."""
    return tag("details", tag("summary", summary), *parts) if any(parts) else Html()


def _row(cell: str, texts: Sequence[str]) -> Html:
    return tag("tr", *(tag(cell, text, kind="number" if column else "") for column, text in enumerate(texts)))
