"""A CogVideoX small enough for tests and demonstrations: the real classes, few parameters, no download."""

from gpu_node.tiny.folder import model_folder

__all__ = ["model_folder"]
