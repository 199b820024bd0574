"""The base models at hand, and what identifies one. Light: no torch in here."""
