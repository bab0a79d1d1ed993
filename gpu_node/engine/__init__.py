"""All that imports torch: the model, how it is loaded, and what makes it fast. Only the worker process uses it."""
