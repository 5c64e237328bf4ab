"""The Hub: models that others have published, and a place for one's own."""

from .client import RepoName, parse, require
from .download import Pulled, fetch
from .upload import push, require_token

__all__ = ["Pulled", "RepoName", "fetch", "parse", "push", "require", "require_token"]
