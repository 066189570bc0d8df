"""What was done to a model and why: ledger views for people and machines."""
