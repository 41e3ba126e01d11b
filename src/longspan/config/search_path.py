"""Folders of one's own beside conf/: Hydra finds their options, a target their code.

They are named by LONGSPAN_PATH and by the flag --config-dir; see `longspan.sparsity.custom`.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from longspan.errors import ConfigError
from longspan.sparsity import custom


class OwnFolders(SearchPathPlugin):
    """Adds the folders behind conf/, whose options so keep their meaning."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the folders; raises ConfigError where one is none."""
        known = {element.path for element in search_path.get_path()}
        for folder in custom.folders():
            if not folder.is_dir():
                raise ConfigError(f"{custom.VARIABLE} names {folder}, which is no folder")
            if (path := f"file://{folder}") not in known:
                search_path.append("longspan", path)


def register() -> None:
    """Make Hydra look into the folders, in this process; may be called again."""
    Plugins.instance().register(OwnFolders)
