"""Reading referring-expression datasets: REFER files, PhraseCut and one's own, with their truth.

Start at `load_refer` (reader); README.md shows the expected folders and where the data comes from.
"""

from __future__ import annotations
