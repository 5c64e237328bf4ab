"""Models as users name them: found, opened, described."""
