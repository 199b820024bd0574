"""Files of training data: where they lie, what rows they have, what a run takes of them. Light: no torch in here."""
