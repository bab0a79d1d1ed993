"""What can go wrong between the platform and a node.

Transient: the same call may succeed later, here or elsewhere. Permanent: repeating it unchanged cannot help;
of these, `NodeRejected` speaks of the job and the others of the node.
The text of each is one plain sentence for staff; it never has a key or a query string in it.
"""

from __future__ import annotations


class NodeError(Exception):
    """The node could not do what was asked."""


class TransientNodeError(NodeError):
    """The same call may succeed later."""


class PermanentNodeError(NodeError):
    """The same call will fail again."""


class NodeUnreachable(TransientNodeError):
    """No connection to the node, or it broke off in the middle."""


class NodeNotReached(NodeUnreachable):
    """No connection was made at all, so the node surely took nothing."""


class NodeTimeout(TransientNodeError):
    """The node did not answer in time; what it was asked to do may still be running."""


class NodeBusy(TransientNodeError):
    """The node's queue is full. retry_after: seconds to leave it alone."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NodeServerError(TransientNodeError):
    """The node answered with a 5xx status."""


class NodeMisconfigured(PermanentNodeError):
    """The address or the key of the node cannot be used at all."""


class NodeUnauthorized(PermanentNodeError):
    """The node does not accept the key."""


class NodeRejected(PermanentNodeError):
    """The node refused the request itself; the message is the node's own."""


class NodeAnsweredNonsense(PermanentNodeError):
    """The answer is not of the protocol: HTML, other JSON, wrong types, a redirect, a file that is not video."""


class NodeCannot(PermanentNodeError):
    """Nodes of this protocol have no such operation."""


class RemoteJobLost(PermanentNodeError):
    """The node does not know the job or no longer has its file."""


class ResultTooLarge(PermanentNodeError):
    """The file is larger than is allowed."""
