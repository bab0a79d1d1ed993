"""Real faults against real processes: `make chaos SEED=n` runs them whole, `make test` a short round of each."""
