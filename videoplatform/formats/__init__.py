"""How times are written, where a language's own way would be in the way."""
