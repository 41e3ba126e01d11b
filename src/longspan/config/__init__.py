"""From YAML and overrides to checked objects."""
