"""
Figure 2, to explore
====================

When is the sign of the gradient better than the gradient? On quadratic problems, where
everything can be computed, it depends on three things: how noisy the gradient is, how different
the eigenvalues are, and whether the eigenvectors lie along the axes. Move the three controls:
SGD and sign descent were run beforehand on all 125 combinations, each with its best step size
at every step.
"""

from pathlib import Path

from svag.theory.figures import explorer

# sphinx_gallery_thumbnail_path = 'theory/figure2.png'
# sphinx_gallery_start_ignore


# The page says how high it is, so that it has no scroll bar of its own.
RESIZE = """<script>
addEventListener("message", event => {
  const frame = document.querySelector("figure.explorer iframe");
  if (event.source === frame.contentWindow && event.data.explorerHeight) {
    frame.style.height = `${event.data.explorerHeight + 2}px`;
  }
});
</script>"""


class Embedded:
    """Shows a page that this script has written inside its own."""

    def __init__(self, page, height):
        self.page, self.height = page, height

    def _repr_html_(self):
        return (
            f'<figure class="explorer"><iframe src="../_static/{self.page}" title="Figure 2" '
            f'loading="lazy" height="{self.height}"></iframe><figcaption>'
            f'<a href="../_static/{self.page}">Open it alone</a></figcaption></figure>{RESIZE}'
        )


# sphinx_gallery_end_ignore
folder = Path("explorer")
folder.mkdir(exist_ok=True)
page = explorer.write(folder)
Embedded(page.name, height=1100)

# %%
# ``svag figure 2`` writes the same page, with Figure 2 itself and its numbers. :doc:`/theory`
# compares them with the paper's.
