"""Quality against peers: the same model, data and budget for ours and for theirs, printed as one table.

``python -m bench.quality [SECTION ...]``; each module of this package but the underscored ones is a section with a
function ``rows() -> Iterator[Row]``.
"""
