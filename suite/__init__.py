"""What the programs share: a split through the method to records, and records to a report.

The only folder besides the programs, ``scripts`` and ``benchmarks`` that joins ``hybridgl``,
``refer`` and ``utils``.
"""
