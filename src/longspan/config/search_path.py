"""Lets Hydra find options in the user's folders too, beside conf/; see `longspan.user_folders`."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from longspan import user_folders
from longspan.errors import ConfigError


class UserFolders(SearchPathPlugin):
    """Adds the user's folders behind conf/, whose options keep their meaning."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the folders.

        Raises:
            ConfigError: one of them is not there.

        """
        known = {element.path for element in search_path.get_path()}
        for folder in user_folders.folders():
            if not folder.is_dir():
                raise ConfigError(f"{user_folders.VARIABLE} names {folder}, which is no folder")
            if (path := f"file://{folder}") not in known:
                search_path.append("longspan", path)


def register() -> None:
    """Make Hydra look into the folders, in this process; may be called again."""
    Plugins.instance().register(UserFolders)
