"""Checks a built manual: every link within it leads somewhere, and no page needs another server.

python .ci/check_links.py SITE
"""

import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself, by tag and attribute; an anchor is followed by a reader alone.
FETCHED = {
    ("script", "src"),
    ("link", "href"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
}


class Page(HTMLParser):
    """The links and the anchors of a page.

    Attributes:
        links: Where each leads, and whether a browser fetches it by itself.
        anchors: The ids on the page.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[tuple[str, bool]] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keeps what a tag leads to."""
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                self.links.append((value, (tag, name) in FETCHED))


def main(site: Path) -> None:
    """Exits with a list of what is wrong, if anything is."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    wrong = defaultdict(list)
    for path, page in pages.items():
        for link, fetched in page.links:
            said = fault(path, link, fetched, pages)
            if said:
                wrong[said].append(path.relative_to(site).as_posix())
    for said, where in sorted(wrong.items()):
        print(f"{said}: {', '.join(sorted(set(where))[:3])}")
    number = sum(len(page.links) for page in pages.values())
    print(f"{number} links on {len(pages)} pages, {len(wrong)} of them wrong.")
    if wrong or not pages:
        sys.exit(1)


def fault(path: Path, link: str, fetched: bool, pages: dict[Path, Page]) -> str:
    """What is wrong with a link on a page; empty if nothing is."""
    parts = urlsplit(link)
    if parts.scheme == "data":
        return ""
    if parts.scheme or parts.netloc:
        return f"{link} is fetched from another server" if fetched else ""
    target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
    if not target.exists():
        return f"{link} leads nowhere"
    anchor = unquote(parts.fragment)
    if target in pages and anchor and anchor not in pages[target].anchors:
        return f"{link} has no such heading"
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
