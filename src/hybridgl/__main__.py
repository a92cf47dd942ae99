"""The command ``hybridgl`` as ``python -m hybridgl``."""

from __future__ import annotations

import sys

from hybridgl.cli import main

sys.exit(main())
