"""MkDocs hook: links from a page to files of the repository outside of docs/.

They are right on a code host and would be broken on the site: they become links to the code host
if `repo_url` is known, else plain text. One to a file that is not there fails a strict build.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#\s]*)(#[^)\s]*)?\)")
_BRANCH = "main"

logger = logging.getLogger("mkdocs.hooks.docs_links")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Return a page's source with its outside links replaced (called by MkDocs)."""
    root = Path(config["config_file_path"]).parent
    source = Path(page.file.abs_src_path)
    return replaced(markdown, source, root, config.get("repo_url") or "")


def replaced(markdown: str, source: Path, root: Path, repository_url: str) -> str:
    """Return Markdown whose links to files outside of the documentation are replaced.

    Args:
        markdown: text of the page.
        source: file of the page.
        root: of the repository.
        repository_url: address of the repository on a code host; empty if it is not known.
    """

    def replace(match: re.Match[str]) -> str:
        text, link, anchor = match[1], match[2], match[3] or ""
        target = (source.parent / link).resolve()
        if not target.exists() or not target.is_relative_to(root):
            logger.warning("%s links to %s, which is not there", source.name, link)
            return match[0]
        if not repository_url:
            return text
        kind = "tree" if target.is_dir() else "blob"
        path = target.relative_to(root).as_posix()
        return f"[{text}]({repository_url.rstrip('/')}/{kind}/{_BRANCH}/{path}{anchor})"

    return _LINK.sub(replace, markdown)
