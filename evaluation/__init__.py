"""What the programs share: a split through a method to records, and records to reports and tables.

The only folder besides the programs, ``scripts`` and ``benchmarks`` that joins ``hybridgl``,
``refer``, ``third_party`` and ``utils``.
"""
