"""Vector envs whose rows live on env runners: one core, and a face for each framework."""
