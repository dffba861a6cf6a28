"""A page read back: its visible text and resources; and what Chromium makes of it."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

INLINE = {"span", "code", "strong", "a", "em"}
VOID = {"meta", "link", "line", "circle", "br", "img", "input"}

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "img-src data: blob:"
)
_FRAME = """<!DOCTYPE html><body>
<iframe id="page" src="page.html" style="width: {width}px; height: 900px"></iframe>
<script>
page.onload = () => setTimeout(() => {{
  const inside = page.contentDocument, apart = ".scroll, svg, .js-plotly-plot";
  const wide = [...inside.querySelectorAll("body *")].filter(
    one => one.getBoundingClientRect().right > {width} + 1 && !one.closest(apart));
  document.body.dataset.width = inside.documentElement.scrollWidth;
  document.body.dataset.wide = wide.map(one => one.tagName + "." + one.className).join(" ");
}}, 3000);
</script></body>"""


class Page(HTMLParser):
    """Collects a page's visible text and resources, and checks that its tags match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.resources: list[str] = []
        self.ids: list[str] = []
        self.charts: list[str] = []
        self.headers: list[dict[str, str | None]] = []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.resources += [known[name] or "" for name in ("src", "href") if name in known]
        self.ids += [known["id"] or ""] if "id" in known else []
        if "chart" in (known.get("class") or "").split():
            self.charts.append(known["id"] or "")
        if tag == "th":
            self.headers.append(known)
        if tag == "br":
            self.words.append(" ")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            raise AssertionError(f"<{tag}/>")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag
            self.words += [] if tag in INLINE else [" "]

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def files(self) -> list[str]:
        """What it links to beside it."""
        return [one for one in self.resources if not one.startswith(("data:", "#"))]


def chromium(*options: str, profile: Path) -> tuple[str, list[str]]:
    """Run Chromium without a window; return what it printed, and its console's lines."""
    assert CHROMIUM
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            "--disable-background-networking",
            *("--hide-scrollbars", "--allow-file-access-from-files"),
            *("--enable-logging=stderr", f"--user-data-dir={profile}"),
            *("--virtual-time-budget=15000", *options),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    return done.stdout, re.findall(r"CONSOLE[^\"]*(\".*\")", done.stderr)


def opened(text: str, folder: Path) -> tuple[str, list[str]]:
    """Open a page that may load nothing; return its elements after drawing, and the console.

    Whatever asks for the network, or for a file, is refused and named in the console.
    """
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    path = folder / "guarded.html"
    path.write_text(text.replace("<head>", f"<head>{policy}", 1), encoding="utf-8")
    return chromium("--dump-dom", path.as_uri(), profile=folder / "profile")


def too_wide(text: str, folder: Path, width: int) -> tuple[int, str]:
    """Open a page in a frame of a phone's width; return how wide it is, and what sticks out."""
    (folder / "page.html").write_text(text, encoding="utf-8")
    (folder / "frame.html").write_text(_FRAME.format(width=width), encoding="utf-8")
    seen, _ = chromium("--dump-dom", (folder / "frame.html").as_uri(), profile=folder / "profile")
    found = re.search(r'data-width="(\d+)" data-wide="([^"]*)"', seen)
    assert found, seen[-500:]
    return int(found[1]), found[2]
