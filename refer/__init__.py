"""Reading referring-expression datasets: REFER files, their splits, and their ground truth.

Start at `load_refer` (reader); README.md shows the expected folders and where the data comes from.
"""

from __future__ import annotations
