"""Check every link inside the built site: ``python docs/check_links.py build/site``.

A link to a page that is not there, or to a place on a page that is not there, is printed, and the
exit code is 1. Links to other sites are not followed; ``make linkcheck`` asks for these.
"""

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page and the places that can be linked to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = {""}
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note links and places."""
        for name, value in attrs:
            if name in ("href", "src") and value and tag != "base":
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.places.add(value)


def broken(site: Path) -> Iterator[str]:
    """Yield what is wrong with each link that leads nowhere."""
    pages = {file.resolve(): Page(file) for file in site.rglob("*.html")}
    if not pages:
        yield f"{site}: no pages; build them with make docs"
    for file, page in pages.items():
        for link in sorted(set(page.links)):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith("#search"):
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            place = unquote(parts.fragment)
            if not target.is_file():
                yield f"{file.relative_to(site.resolve())}: {link} is not there"
            elif target in pages and place not in pages[target].places:
                yield f"{file.relative_to(site.resolve())}: {link} has no place of that name"


def main() -> int:
    """Print the broken links of the site that the command line names."""
    found = list(broken(Path(sys.argv[1])))
    print("\n".join(found) or "no broken link")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
