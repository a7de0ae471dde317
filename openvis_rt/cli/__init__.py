"""The command ``openvis``: one thin file a verb."""
