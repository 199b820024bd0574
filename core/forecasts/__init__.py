"""What a run would do, cost and show, found out before it begins."""
