"""The models that come with the project: one that draws what its small vocabulary says, and one for tests.

Both are made of the classes that CogVideoX-5B uses. docs/embedded-model.md tells what the first can do.
"""

from gpu_node.tiny.folder import model_folder

__all__ = ["model_folder"]
