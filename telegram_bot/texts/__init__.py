"""Every word the bot says, one subject a module. Telegram's HTML: whatever a person wrote goes through `escaped`, never
through Markdown. Called while the person's language is active (see `speech`).
"""
