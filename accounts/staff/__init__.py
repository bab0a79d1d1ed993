"""What staff do, whoever they are: roles, the log of their acts, and the operations behind the admin's pages.

Each operation takes a `Clerk`, holds the act against the clerk's rights, and writes it down in its own transaction:
no page, and no door that is added later, can forget either.
"""
