"""What staff do about jobs and nodes: the operations behind the admin's pages. As `accounts.staff`, each holds the act
against the clerk's rights and writes it down in its own transaction.
"""
