"""The Hub: models that others have published, and a place for one's own."""

from .cache import Pulled
from .client import RepoName, parse, require
from .download import fetch
from .upload import licence, push, require_token

__all__ = ["Pulled", "RepoName", "fetch", "licence", "parse", "push", "require", "require_token"]
