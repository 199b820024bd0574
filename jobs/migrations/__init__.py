"""How the ledger's tables came to be, one revision after another.

A change of `jobs.tables` brings a new file in `versions/`, named and chained like those before it; a released one is
never edited. A test holds the tables and the sum of all revisions against each other.
"""

REVISION = "0003"
"""The newest one, which this code is written for."""
