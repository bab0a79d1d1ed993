"""The texts of the bot, a module for each subject. Telegram's HTML: user input goes through `escaped`, never through
Markdown. Called while the person's language is active (see `users`).
"""
