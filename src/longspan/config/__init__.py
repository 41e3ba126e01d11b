"""From YAML and overrides to checked objects."""

from longspan.config import resolvers

resolvers.register()
