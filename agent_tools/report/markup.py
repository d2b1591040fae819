"""HTML that stays ours: whatever is not `Html` is text, and is escaped when it becomes part of an element."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape


class Html(str):
    """Markup of ours; every other string is text."""

    __slots__ = ()


def inert(text: str) -> Html:
    """Any string as HTML text: escaped, without control characters and without halves of characters."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return Html(escape("".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in whole)))


def tag(name: str, *children: str, kind: str = "") -> Html:
    """An element of one CSS class or none; children that are not `Html` are escaped."""
    inside = joined(child if isinstance(child, Html) else inert(child) for child in children)
    return Html(f'<{name} class="{kind}">{inside}</{name}>' if kind else f"<{name}>{inside}</{name}>")


def link(words: str, address: str) -> Html:
    """A link; the address is ours."""
    return Html(f'<a href="{inert(address)}">{inert(words)}</a>')


def joined(parts: Iterable[Html]) -> Html:
    """Elements one after the other."""
    return Html("".join(parts))


def section(title: str, *parts: Html) -> Html:
    """Parts under a heading; nothing when all of them are empty."""
    return joined((tag("h2", title), *parts)) if any(parts) else Html()


def card(*parts: str) -> Html:
    """Parts that belong together."""
    return tag("section", *parts, kind="card")


def badge(words: str, kind: str = "") -> Html:
    """A word that is to be seen first."""
    return tag("span", words, kind=f"badge {kind}".strip())


def listed(items: Iterable[str], kind: str = "") -> Html:
    """A list; nothing when there are no items."""
    lines = [tag("li", item) for item in items]
    return tag("ul", *lines, kind=kind) if lines else Html()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table that scrolls on a narrow screen; all columns but the first are figures. Nothing without rows."""
    cells = [_row("th", head), *(_row("td", row) for row in rows)]
    return tag("div", tag("table", *cells), kind="scroll") if rows else Html()


def facts(given: Mapping[str, str]) -> Html:
    """Names and what there is to say of each; those with nothing to say are left out."""
    return tag("dl", *(joined((tag("dt", name), tag("dd", fact))) for name, fact in given.items() if fact))


def folded(summary: str, *parts: Html) -> Html:
    """Parts that are shown when asked for."""
    return tag("details", tag("summary", summary), *parts) if any(parts) else Html()


def _row(cell: str, texts: Sequence[str]) -> Html:
    return tag("tr", *(tag(cell, text, kind="number" if column else "") for column, text in enumerate(texts)))
