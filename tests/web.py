"""`httpx.get` and the like for tests that ask many times a second: each request on a connection of its own, as there.

One TLS context serves them all, though none of them needs it: to make one takes ten times as long as the request.
"""

from functools import partial

import httpx

_context = httpx.create_ssl_context()
get = partial(httpx.get, verify=_context)
post = partial(httpx.post, verify=_context)
stream = partial(httpx.stream, verify=_context)
