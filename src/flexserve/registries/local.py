"""The models that other programs keep on this machine: ollama's, and LM Studio's."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from flexserve.errors import CallerError
from flexserve.registries.hub import model_layer
from flexserve.trusted.store.split import part_names, whole_name

_MOST = 1 << 20  # bytes of a manifest


@dataclasses.dataclass(frozen=True, slots=True)
class LocalModel:
    """A GGUF file of another program. `sha256`: what its digest has to be ("": not known)."""

    name: str  # as the program calls it
    path: Path
    size: int  # bytes, of all parts
    sha256: str = ""


def ollama_folder() -> Path:
    """Return where ollama keeps its models."""
    return Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models")


def lmstudio_folder() -> Path:
    """Return where LM Studio keeps its models: under ~/.lmstudio, or in the cache of older versions."""
    new, old = Path.home() / ".lmstudio" / "models", Path.home() / ".cache" / "lm-studio" / "models"
    return old if old.is_dir() and not new.is_dir() else new


def ollama_models(folder: Path) -> list[LocalModel]:
    """Return the models in a folder of ollama's: manifests/HOST/NAMESPACE/NAME/TAG, and blobs/sha256-DIGEST.

    What cannot be used (adapters, broken manifests) is left out.
    """
    return sorted(_ollama(folder), key=lambda model: model.name)


def _ollama(folder: Path) -> Iterator[LocalModel]:
    for manifest in (folder / "manifests").glob("*/*/*/*"):
        _, space, name, tag = manifest.relative_to(folder / "manifests").parts
        try:
            if manifest.stat().st_size > _MOST:
                continue
            digest, _ = model_layer(json.loads(manifest.read_bytes()), manifest.name)
            blob = folder / "blobs" / f"sha256-{digest}"
            size = blob.stat().st_size
        except (OSError, ValueError, CallerError):
            continue
        title = name if space == "library" else f"{space}/{name}"
        yield LocalModel(f"{title}:{tag}", blob, size, digest)


def lmstudio_models(folder: Path) -> list[LocalModel]:
    """Return the models in a folder of LM Studio's: PUBLISHER/MODEL/FILE.gguf."""
    found = []
    for path in sorted(folder.glob("*/*/*.gguf")):
        parts = [path.with_name(part) for part in part_names(path.name)]
        if parts[0] == path and "mmproj" not in path.name.lower() and all(part.is_file() for part in parts):
            size = sum(part.stat().st_size for part in parts)
            found.append(LocalModel(Path(whole_name(path.name)).stem, path, size))
    return found


PROGRAMS: dict[str, tuple[Callable[[], Path], Callable[[Path], list[LocalModel]]]] = {
    "ollama": (ollama_folder, ollama_models),
    "lmstudio": (lmstudio_folder, lmstudio_models),
}
