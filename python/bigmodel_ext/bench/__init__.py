"""The benchmark suites behind ``bigmodel bench``: each verifies outputs, then times ours and the peers in turns.

Nothing but the command line imports this package, and every peer is imported only when it is timed.
"""
