"""Many objects: jobs, their records and ledgers, limits, and what is left to do."""
