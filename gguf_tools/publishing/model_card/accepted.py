"""What the hub accepts in a model card's front matter, checked offline.

Source: what the hub's check of a card (`ModelCard.validate` of huggingface_hub, by the route api/validate-yaml) says of values
that it refuses; `modelcard.md` and `repositories-licenses` of huggingface/hub-docs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from gguf_tools.publishing.names import is_repo_id

_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0
artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0
epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research
intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openmdw-1.1 openrail++ osl-3.0
postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3
llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown other
"""
LICENSES = frozenset(_LICENSES.split())
"""The identifiers of licenses."""
OTHER = "other"
LICENSE_FILES = ("LICENSE", "LICENSE.md")
_ISO_639_1 = """
aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo es et
eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl
km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj
om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn
to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
"""
ISO_639_1 = frozenset(_ISO_639_1.split())
"""The two-letter codes of languages."""
SPECIAL_LANGUAGES = ("code", "multilingual")
_THREE_LETTERS = re.compile(r"[a-z]{3}")
_BCP_47 = re.compile(r"([a-z]{2,3})(-[A-Za-z0-9]{2,8})+")
_SLUG = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)


def accepted(values: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The front matter without the values that the hub would refuse, and a sentence on each of those.

    A license that the hub does not list becomes `other`, with its name; a language with a region goes to `language_bcp47`, where
    the hub expects it.
    """
    notes: list[str] = []
    found = dict(values)
    _license(found, notes)
    _languages(found, notes)
    for key in ("base_model", "datasets"):
        given = found.get(key) or []
        ids = _kept(key, [given] if isinstance(given, str) else given, notes)
        if isinstance(given, str):
            found[key] = ids[0] if ids else None
        else:
            found[key] = ids
    if not found.get("base_model"):
        found["base_model_relation"] = None
    return {key: value for key, value in found.items() if value}, tuple(notes)


def _license(found: dict[str, Any], notes: list[str]) -> None:
    """Replace a license that the hub does not know, and leave out a name or link that belongs to none or is no link."""
    given, name, link = (found.get(key) for key in ("license", "license_name", "license_link"))
    if given and given.lower() in LICENSES:
        found["license"] = given.lower()
    elif given or name:
        found["license"] = OTHER
        name = name or given
    slug = "-".join(re.findall(r"[\w.+-]+", name.lower(), re.ASCII)).strip("-.+") if name else None
    if name and not _SLUG.fullmatch(name):
        name = slug
    if given and given.lower() not in LICENSES:
        notes.append(
            f"license {given!r} is not in the hub's list; the card says {OTHER}" + (f" ({name})" if name else "")
        )
    elif found.get("license_name") not in (None, name):
        notes.append(
            f"license_name {found['license_name']!r} is no identifier such as my-license-1.0; the card says {name}"
        )
    found["license_name"] = name if found.get("license") == OTHER else None
    if link and not _is_link(link):
        notes.append(f"license_link {link!r} is neither a URL nor {' or '.join(LICENSE_FILES)}; it is left out")
        link = None
    found["license_link"] = link if found.get("license") == OTHER else None


def _is_link(text: str) -> bool:
    if text in LICENSE_FILES:
        return True
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc) and not re.search(r"\s", text)


def _languages(found: dict[str, Any], notes: list[str]) -> None:
    """Keep the codes that the hub accepts under `language`."""
    kept: dict[str, None] = {}
    regional: dict[str, None] = {}
    for code in found.get("language") or []:
        lower = code.lower()
        match = _BCP_47.fullmatch(code)
        if lower in ISO_639_1 or lower in SPECIAL_LANGUAGES or _THREE_LETTERS.fullmatch(lower):
            kept[lower] = None
        elif match and (match[1] in ISO_639_1 or len(match[1]) == 3):
            kept[match[1]] = None
            regional[code] = None
        else:
            notes.append(f"language {code!r} is no ISO 639 code; it is left out")
    found["language"] = list(kept)
    found["language_bcp47"] = list(regional)


def _kept(key: str, ids: Iterable[str], notes: list[str]) -> list[str]:
    """The ids that name repositories on the hub."""
    kept = []
    for text in dict.fromkeys(ids):
        if is_repo_id(text):
            kept.append(text)
        else:
            notes.append(f"{key} {text!r} is no id of a repository on the hub; it is left out")
    return kept
