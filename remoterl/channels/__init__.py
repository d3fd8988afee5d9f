"""How requests reach an env runner and replies come back."""
