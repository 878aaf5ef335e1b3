"""The images of a problem: which photos are there, their rows, and videos as mean frames."""

from collections.abc import Callable, Iterable

import numpy as np

from evals import scoring
from evals.images import DataRoots, ImageRef

# The photos, always equally many, whose mean embedding stands for an image.
Views = Callable[[ImageRef], tuple[ImageRef, ...]]


class ProblemImages:
    """Distinct images all of whose photos are there, in order.

    `refs` are the photos to encode, `missing` the paths of those that are not there.
    """

    def __init__(self, roots: DataRoots, images: Iterable[ImageRef], views: Views | None = None):
        parts = {ref: views(ref) if views else (ref,) for ref in dict.fromkeys(images)}
        self.missing = roots.missing(view.path for refs in parts.values() for view in refs)
        gone = set(self.missing)
        kept = [ref for ref, refs in parts.items() if not any(v.path in gone for v in refs)]
        self.refs = [view for ref in kept for view in parts[ref]]
        self._count = len(self.refs) // max(len(kept), 1)
        self._rows = {ref: row for row, ref in enumerate(kept)}

    def __contains__(self, ref: ImageRef) -> bool:
        return ref in self._rows

    def row(self, ref: ImageRef) -> int:
        """Row of the image in `features`."""
        return self._rows[ref]

    def shown(self, ref: ImageRef) -> int:
        """Index in `refs` of the photo that stands for the image in a gallery."""
        return self._rows[ref] * self._count

    def features(self, encoded: np.ndarray) -> np.ndarray:
        """Unit features of the images from those of `refs`, `[len(refs), D]`."""
        return encoded if self._count == 1 else scoring.mean_directions(encoded, self._count)
