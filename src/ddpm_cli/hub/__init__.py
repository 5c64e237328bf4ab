"""The Hub: models that others have published, and a place for one's own."""

from ..errors import HubError

try:
    from .cache import Pulled
    from .client import RepoName, parse, require
    from .download import fetch
    from .upload import FrontMatter, Page, page_of, push, require_token
except ValueError as error:  # of the client, which reads its variables when it is imported
    raise HubError(f"an HF_... variable of the environment has a value that is of no use: {error}") from error

__all__ = ["FrontMatter", "Page", "Pulled", "RepoName", "fetch", "page_of", "parse", "push", "require", "require_token"]
