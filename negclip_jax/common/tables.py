"""Tables as plain text for a terminal."""

import itertools
from collections.abc import Sequence

from negclip_jax.common.errors import one_line


def aligned(lines: Sequence[Sequence[str]], *, right: bool = False) -> str:
    """Lines of cells below each other, two blanks between columns; a line may have fewer cells.

    All columns but the first are aligned left, or `right` as numbers are. A cell becomes
    `one_line`.
    """
    lines = [[one_line(cell) for cell in line] for line in lines]
    columns = itertools.zip_longest(*lines, fillvalue="")
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right and i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=False))
        ).rstrip()
        for line in lines
    )
