"""How the demonstration model is trained: `python -m gpu_node.tiny.training`, or `make train-tiny`."""
