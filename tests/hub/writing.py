"""The hub's routes for uploading: creating repositories, preupload, LFS (one part or several), and commits."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import yaml

from tests.hub.exchange import Exchange, Refusal
from tests.hub.reading import commit_of, repository, user_of
from tests.hub.repositories import Blob, Repository, StoredFile, stored_as_lfs

RELATIONS = ("adapter", "merge", "quantized", "finetune")
"""What the hub accepts as base_model_relation."""


def writable(exchange: Exchange, name: str) -> Repository:
    """The repository of a request that changes it. Refuses users other than the owner of its name space."""
    found = repository(exchange, name)
    if user_of(exchange) != name.partition("/")[0]:
        raise Refusal(403, f"You don't have the required permissions to change {name}")
    return found


def create(exchange: Exchange) -> None:
    """`api/repos/create`."""
    asked = exchange.json_body()
    user = user_of(exchange)
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    owner = asked.get("organization") or user
    if owner != user:
        raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
    name = f"{owner}/{asked['name']}"
    url = f"{exchange.hub.url}/{name}"
    if name in exchange.hub.repositories:
        refusal = "You already created this model repo"
        exchange.send_json({"error": refusal, "url": url}, 409, {"X-Error-Message": refusal})
        return
    private = asked.get("private", asked.get("visibility") == "private")
    exchange.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private, readers={user})
    exchange.send_json({"url": url, "name": name, "id": "0" * 24})


def branch(exchange: Exchange, name: str, revision: str) -> None:
    """`api/models/ORG/NAME/branch/BRANCH`: a new branch."""
    found = writable(exchange, name)
    asked = exchange.json_body() or {}
    if revision in found.refs:
        raise Refusal(409, f"Reference already exists: {revision}")
    found.refs[revision] = commit_of(found, asked.get("startingPoint", "main"))
    exchange.send_json({"success": True}, 201)


def validate_yaml(exchange: Exchange) -> None:
    """`api/validate-yaml`: the errors in a model card's front matter."""
    content = exchange.json_body()["content"]
    parts = content.split("---\n", 2)
    try:
        front = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else {}
    except yaml.YAMLError as error:
        exchange.send_json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return
    errors = []
    relation = front.get("base_model_relation")
    if relation is not None and relation not in RELATIONS:
        errors.append({"message": f'"base_model_relation" must be one of {list(RELATIONS)}'})
    if front.get("license") == "other" and "license_name" not in front:
        errors.append({"message": '"license_name" is required if "license" is "other"'})
    exchange.send_json({"errors": errors, "warnings": []}, 400 if errors else 200)


def preupload(exchange: Exchange, name: str, revision: str) -> None:
    """`api/models/ORG/NAME/preupload/REVISION`: whether each file is stored by LFS, and the object that it has now."""
    found = writable(exchange, name)
    files = found.commits[commit_of(found, revision)]
    answers = []
    for asked in exchange.json_body()["files"]:
        path, now = asked["path"], files.get(asked["path"])
        answers.append(
            {
                "path": path,
                "uploadMode": "lfs" if stored_as_lfs(path, asked["size"]) else "regular",
                "shouldIgnore": False,
                "oid": now.etag if now else None,
            }
        )
    exchange.send_json({"files": answers})


def lfs_batch(exchange: Exchange, name: str) -> None:
    """`ORG/NAME.git/info/lfs/objects/batch`: where each object is to be uploaded; nothing for those that are stored already."""
    writable(exchange, name)
    hub = exchange.hub
    objects = []
    for asked in exchange.json_body()["objects"]:
        oid, size = asked["oid"], asked["size"]
        answer: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
        if oid not in hub.uploaded:
            upload = {"href": f"{hub.storage_url}/upload/{oid}?signature={hub.sign()}"}
            if hub.part_bytes and size > hub.part_bytes:
                parts = range(1, -(-size // hub.part_bytes) + 1)
                header = {f"{n:05}": f"{hub.storage_url}/upload/{oid}/{n}?signature={hub.sign()}" for n in parts}
                upload["header"] = {"chunk_size": str(hub.part_bytes), **header}  # type: ignore[assignment]
                upload["href"] = f"{hub.storage_url}/complete/{oid}?signature={hub.sign()}"
            verify = {"href": f"{hub.url}/{name}.git/info/lfs/objects/verify"}
            answer["actions"] = {"upload": upload, "verify": verify}
        objects.append(answer)
    exchange.send_json({"transfer": "basic", "objects": objects}, headers={"X-Repo-Commit": ""})


def lfs_verify(exchange: Exchange, name: str) -> None:
    """Whether an object arrived."""
    writable(exchange, name)
    asked = exchange.json_body()
    blob = exchange.hub.uploaded.get(asked["oid"])
    if blob is None or blob.size != asked["size"]:
        raise Refusal(404, "The object was not uploaded")
    exchange.send_json({})


def upload(exchange: Exchange, oid: str) -> None:
    """An object in one piece, on the host for large files."""
    _keep(exchange, oid, exchange.body())
    exchange.start(200, {}, 0)


def upload_part(exchange: Exchange, oid: str, part: str) -> None:
    """A part of an object."""
    data = exchange.body()
    exchange.hub.parts[oid, int(part)] = data
    exchange.start(200, {"ETag": f'"{hashlib.md5(data).hexdigest()}"'}, 0)


def complete(exchange: Exchange, oid: str) -> None:
    """The end of an upload in parts."""
    parts = exchange.hub.parts
    data = []
    for asked in exchange.json_body()["parts"]:
        part = parts.get((oid, asked["partNumber"]))
        if part is None or asked["etag"].strip('"') != hashlib.md5(part).hexdigest():
            raise Refusal(400, "One or more of the specified parts could not be found")
        data.append(part)
    _keep(exchange, oid, b"".join(data))
    exchange.send_json({})


def _keep(exchange: Exchange, oid: str, data: bytes) -> None:
    if exchange.query.get("signature") not in exchange.hub.signatures:
        raise Refusal(403, "Request has expired")
    if hashlib.sha256(data).hexdigest() != oid:
        raise Refusal(400, "The SHA-256 of the content is not that of the object")
    exchange.hub.uploaded[oid] = Blob(data)


def commit(exchange: Exchange, name: str, revision: str) -> None:
    """`api/models/ORG/NAME/commit/REVISION`: a commit in lines of JSON. All of it becomes visible, or nothing."""
    found = writable(exchange, name)
    files = dict(found.commits[commit_of(found, revision)])
    message = ""
    for line in exchange.body().splitlines():
        item = json.loads(line)
        key, value = item["key"], item["value"]
        if key == "header":
            message = value["summary"]
            if value.get("parentCommit") not in (None, commit_of(found, revision)):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        else:
            _apply(exchange, files, key, value)
    sha = found.commit(files, message, revision)
    url = f"{exchange.hub.url}/{name}/commit/{sha}"
    exchange.send_json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})


def _apply(exchange: Exchange, files: dict[str, StoredFile], key: str, value: dict[str, Any]) -> None:
    """Apply one operation of a commit to the files."""
    path = value["path"]
    if key == "file":
        files[path] = StoredFile(Blob(base64.b64decode(value["content"])), lfs=False)
    elif key == "lfsFile":
        blob = exchange.hub.blob(value["oid"])
        if blob is None:
            raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {path}")
        files[path] = StoredFile(blob, lfs=True)
    elif key in ("deletedFile", "deletedFolder"):
        gone = [each for each in files if each == path or (key == "deletedFolder" and each.startswith(path))]
        if not gone:
            raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        for each in gone:
            del files[each]
    else:
        raise Refusal(400, f"unknown operation {key}")
