"""What a reference means now: the files to download, their sizes and digests.

Hugging Face: GET /api/models/ORG/REPO/tree/REVISION (path, size and, for large files, the SHA-256).
ollama: GET /v2/NAMESPACE/NAME/manifests/TAG (the layer of media type "…image.model" is the GGUF).
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from flexserve.errors import CallerError, NormalWorldError
from flexserve.registries.reference import HubReference, OllamaReference, Reference
from flexserve.trusted.store.split import part_names, whole_name

HUB, OLLAMA = "https://huggingface.co", "https://registry.ollama.ai"
_MODEL_LAYER = "application/vnd.ollama.image.model"
_ADAPTER_LAYER = "application/vnd.ollama.image.adapter"
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
# Of several files, the first of these that a repository has: small, and close to the whole model.
_PREFERRED = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q5_K_M", "Q6_K", "Q8_0")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST = 16 << 20  # bytes of an answer about a model


@dataclasses.dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that can be downloaded. `sha256` and `size` as far as they are known (else "" and 0)."""

    url: str
    size: int = 0
    sha256: str = ""
    token: str = dataclasses.field(default="", repr=False)  # for `url`'s host alone


@dataclasses.dataclass(frozen=True, slots=True)
class Published:
    """A published model: the file or, when it is split, the parts; and what it is called."""

    files: tuple[RemoteFile, ...]
    title: str


def find(reference: Reference, client: httpx.Client) -> Published:
    """Return what `reference` means now. Raises CallerError when it means nothing, NormalWorldError."""
    if isinstance(reference, HubReference):
        return _find_on_hub(reference, client)
    if isinstance(reference, OllamaReference):
        return _find_on_ollama(reference, client)
    name = Path(urlsplit(reference.url).path).name
    urls = [reference.url.replace(name, part, 1) for part in part_names(name)] if name else [reference.url]
    return Published(tuple(RemoteFile(url) for url in urls), Path(whole_name(name)).stem)


def hub_token() -> str:
    """Return the user's token for Hugging Face, from where its own tools look for it ("": none)."""
    if token := os.environ.get("HF_TOKEN"):
        return token
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    try:
        return (home / "token").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _find_on_hub(reference: HubReference, client: httpx.Client) -> Published:
    hub, token = os.environ.get("HF_ENDPOINT", HUB).rstrip("/"), hub_token()
    revision = quote(reference.revision, safe="")
    about = f"{hub}/api/models/{reference.repo}/tree/{revision}?recursive=true"
    files = _hub_files(_ask(client, about, f"hf:{reference.repo}", token=token))
    chosen = _choose(reference, sorted(files))
    missing = [name for name in part_names(chosen) if name not in files]
    if missing:
        raise CallerError(f"hf:{reference.repo} lacks {missing[0]}.", hint="Choose another quantisation.")
    return Published(
        tuple(
            RemoteFile(f"{hub}/{reference.repo}/resolve/{revision}/{quote(name)}", *files[name], token)
            for name in part_names(chosen)
        ),
        Path(whole_name(chosen)).stem,
    )


def _hub_files(answer: Any) -> dict[str, tuple[int, str]]:
    """Return size and SHA-256 of each GGUF of a repository, by path."""
    found: dict[str, tuple[int, str]] = {}
    for entry in answer if isinstance(answer, list) else []:
        path, size = (entry.get("path"), entry.get("size")) if isinstance(entry, dict) else (None, None)
        if isinstance(path, str) and isinstance(size, int) and path.lower().endswith(".gguf"):
            large = entry.get("lfs")
            digest = str(large.get("oid", "")) if isinstance(large, dict) else ""
            found[path] = size, digest if _SHA256.fullmatch(digest) else ""
    return found


def _choose(reference: HubReference, names: Sequence[str]) -> str:
    """Return the file that `reference` means; of a split model, the first part."""
    firsts = [name for name in names if part_names(name)[0] == name and "mmproj" not in name.lower()]
    if reference.file:
        if reference.file in names:
            return part_names(reference.file)[0]
        raise _none_such(f"hf:{reference.repo} has no file {reference.file}.", firsts)
    if not firsts:
        raise CallerError(f"hf:{reference.repo} has no GGUF files.", hint="Choose a repository that has.")
    for wanted in [reference.quant] if reference.quant else _PREFERRED:
        if found := next((name for name in firsts if _is_of(name, wanted)), None):
            return found
    if reference.quant:
        raise _none_such(f"hf:{reference.repo} has no GGUF of quantisation {reference.quant}.", firsts)
    return firsts[0]


def _is_of(name: str, quant: str) -> bool:
    """Tell whether a file's name says this quantisation, as a word: Q4_K is not Q4_K_M."""
    return re.search(rf"(?<![A-Za-z0-9_]){re.escape(quant)}(?![A-Za-z0-9_])", name, re.IGNORECASE) is not None


def _none_such(message: str, names: Sequence[str]) -> CallerError:
    shown = ", ".join(names[:20]) + (" …" if len(names) > 20 else "")
    return CallerError(message, hint=f"It has: {shown or 'no GGUF files'}.", code="model_not_found")


def _find_on_ollama(reference: OllamaReference, client: httpx.Client) -> Published:
    base = f"{OLLAMA}/v2/{reference.space}/{reference.name}"
    title = f"ollama:{reference.name}:{reference.tag}"
    answer = _ask(client, f"{base}/manifests/{reference.tag}", title, accept=_MANIFEST)
    digest, size = model_layer(answer, title)
    name = reference.name if reference.tag == "latest" else f"{reference.name}-{reference.tag}"
    return Published((RemoteFile(f"{base}/blobs/sha256:{digest}", size, digest),), name)


def model_layer(manifest: Any, title: str) -> tuple[str, int]:
    """Return SHA-256 and size of the GGUF of an ollama manifest. Raises CallerError when it has none."""
    layers = manifest.get("layers") if isinstance(manifest, dict) else None
    kinds: dict[str, list[dict[str, Any]]] = {}
    for layer in layers if isinstance(layers, list) else []:
        if isinstance(layer, dict):
            kinds.setdefault(str(layer.get("mediaType")), []).append(layer)
    if kinds.get(_ADAPTER_LAYER):
        raise CallerError(f"{title} is a model with an adapter.", hint="Pull the model that it adapts.")
    found = kinds.get(_MODEL_LAYER, [])
    digest = str(found[0].get("digest", "")).removeprefix("sha256:") if len(found) == 1 else ""
    size = found[0].get("size") if found else None
    if not _SHA256.fullmatch(digest) or not isinstance(size, int):
        raise CallerError(f"{title} is not one GGUF file.", hint="Choose another model.")
    return digest, size


def _ask(client: httpx.Client, url: str, title: str, *, token: str = "", accept: str = "") -> Any:
    headers = authorization(token) | ({"Accept": accept} if accept else {})
    try:
        with client.stream("GET", url, headers=headers) as answer:
            refuse(answer, title, token=token)
            text = b""
            for piece in answer.iter_bytes():
                text += piece
                if len(text) > _MOST:
                    raise NormalWorldError(f"{urlsplit(url).hostname} answered with more than it should.")
            return httpx.Response(200, content=text).json()
    except httpx.HTTPError as error:
        raise unreachable(url, error) from error
    except ValueError:
        raise NormalWorldError(
            f"{urlsplit(url).hostname} did not answer with JSON.", hint="Is there a proxy in between?"
        ) from None


def authorization(token: str) -> dict[str, str]:
    """Return the header that shows `token` ("": none)."""
    return {"Authorization": f"Bearer {token}"} if token else {}


def refuse(answer: httpx.Response, title: str, *, token: str = "") -> None:
    """Raise CallerError or NormalWorldError for an answer that is not what was asked for."""
    if answer.status_code in (401, 403):
        hint = "Your token may not read it: accept its licence on its page, or use another token."
        raise CallerError(
            f"{title} may not be read ({answer.status_code}): it is private, gated, or does not exist.",
            hint=hint if token else "Set HF_TOKEN to a token that may, and check the name.",
            code="model_not_found",
        )
    if answer.status_code in (404, 410):
        raise CallerError(f"There is no {title}.", hint="Check the name.", code="model_not_found")
    if not answer.is_success:
        raise NormalWorldError(
            f"{answer.url.host} answered {answer.status_code} for {title}.", hint="Try again later."
        )


def unreachable(url: str, error: Exception) -> NormalWorldError:
    """Return the error that says that a host could not be reached, or that its answer ended early."""
    said = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
    never = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
    return NormalWorldError(
        f"{urlsplit(url).netloc.rpartition('@')[2]} {'cannot be reached' if never else 'broke off'}: {said}.",
        hint="Check the network and the proxy (HTTPS_PROXY), and try again.",
        code="network_failed",
    )
