"""The GPU node: makes CogVideoX clips over HTTP. Stands alone: it imports nothing of the platform, and no Django."""
