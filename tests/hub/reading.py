"""The hub's routes for reading: resolve, api/models (info, tree, paths-info, refs), and the storage of large files."""

from __future__ import annotations

from urllib.parse import parse_qs, quote

from tests.hub.exchange import Exchange, Refusal
from tests.hub.repositories import Repository, StoredFile

PAGE = 1000
"""Entries that a page of the tree route has."""


def user_of(exchange: Exchange) -> str | None:
    """The user whose token a request has; None without a token. Refuses an unknown token."""
    token = exchange.token
    if token is None:
        return None
    if token not in exchange.hub.tokens:
        raise Refusal(401, "Invalid credentials in Authorization header")
    return exchange.hub.tokens[token]


def repository(exchange: Exchange, name: str) -> Repository:
    """The repository of a request. Refuses one that does not exist, or that is private and not the user's."""
    user = user_of(exchange)
    found = exchange.hub.repositories.get(name)
    if found is None or (found.private and user not in found.readers):
        if user is None and exchange.url_path.startswith("/api/"):
            raise Refusal(401, "Invalid username or password.")
        raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
    return found


def commit_of(found: Repository, revision: str) -> str:
    """The commit that a revision names. Refuses an unknown one."""
    sha = found.resolve(revision)
    if sha is None:
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return sha


def readable(exchange: Exchange, name: str, revision: str, path: str) -> tuple[str, StoredFile]:
    """The commit and the file that a request to resolve means. Refuses what does not exist or is gated for the user."""
    found = repository(exchange, name)
    user = user_of(exchange)
    if found.gated and user not in found.readers:
        message = f"Access to model {name} is restricted."
        raise Refusal(401 if user is None else 403, message, "GatedRepo")
    sha = commit_of(found, revision)
    if path not in found.commits[sha]:
        raise Refusal(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": sha})
    return sha, found.commits[sha][path]


def resolve(exchange: Exchange, name: str, revision: str, path: str) -> None:
    """`/ORG/NAME/resolve/REVISION/PATH`: LFS files lie on another host, the others at a path with the commit in it."""
    sha, file = readable(exchange, name, revision, path)
    headers = {"X-Repo-Commit": sha, "ETag": f'"{file.etag}"'}
    if not file.lfs:
        target = f"/api/resolve-cache/models/{name}/{sha}/{quote(path)}"
        exchange.start(307, {**headers, "Location": target}, 0)
        return
    headers |= {"X-Linked-Size": str(file.blob.size), "X-Linked-Etag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
    if exchange.hub.xet:
        headers |= {
            "X-Xet-Hash": file.blob.sha256,
            "Link": f'<{exchange.hub.url}/api/models/{name}/xet-read-token/{sha}>; rel="xet-auth"',
        }
    exchange.start(302, {**headers, "Location": exchange.hub.signed(file)}, 0)


def resolve_cache(exchange: Exchange, name: str, revision: str, path: str) -> None:
    """The content of a file that is stored in git."""
    sha, file = readable(exchange, name, revision, path)
    exchange.send_blob(file.blob, {"X-Repo-Commit": sha, "ETag": f'"{file.etag}"'})


def storage_object(exchange: Exchange, oid: str) -> None:
    """The content of an LFS file, on the host for large files. Refuses a request that carries the hub's token."""
    if exchange.token is not None:
        raise Refusal(400, "Only one auth mechanism allowed")
    if exchange.query.get("signature") not in exchange.hub.signatures:
        raise Refusal(403, "Request has expired")
    blob = exchange.hub.blob(oid)
    if blob is None:
        raise Refusal(404, "Not Found")
    exchange.send_blob(blob, {"ETag": f'"{oid[:32]}"'})


def info(exchange: Exchange, name: str, revision: str = "main") -> None:
    """`api/models/ORG/NAME[/revision/REVISION]`."""
    found = repository(exchange, name)
    exchange.send_json(found.info(commit_of(found, revision), blobs="blobs" in exchange.query))


def tree(exchange: Exchange, name: str, revision: str, path: str = "") -> None:
    """`api/models/ORG/NAME/tree/REVISION[/PATH]`, in pages."""
    found = repository(exchange, name)
    recursive = exchange.query.get("recursive", "").lower() in ("true", "1")
    entries = found.tree(commit_of(found, revision), (path or "").strip("/"), recursive=recursive)
    if path and not entries:
        raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound")
    first = int(exchange.query.get("cursor", "0"))
    headers = {}
    if first + exchange.hub.page < len(entries):
        query = f"recursive={recursive}&cursor={first + exchange.hub.page}"
        headers["Link"] = f'<{exchange.hub.url}{exchange.raw_path}?{query}>; rel="next"'
    exchange.send_json(entries[first : first + exchange.hub.page], headers=headers)


def paths_info(exchange: Exchange, name: str, revision: str) -> None:
    """`api/models/ORG/NAME/paths-info/REVISION`: the files among the paths asked for."""
    found = repository(exchange, name)
    files = found.commits[commit_of(found, revision)]
    asked = parse_qs(exchange.body().decode()).get("paths", [])
    exchange.send_json([files[path].entry(path) for path in asked if path in files])


def refs(exchange: Exchange, name: str) -> None:
    """`api/models/ORG/NAME/refs`: all refs are listed as branches."""
    found = repository(exchange, name)
    branches = [
        {"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": sha} for ref, sha in sorted(found.refs.items())
    ]
    exchange.send_json({"branches": branches, "converts": [], "tags": [], "pullRequests": []})


def whoami(exchange: Exchange) -> None:
    """`api/whoami-v2`: the user of the token."""
    user = user_of(exchange)
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    exchange.send_json({"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}})
