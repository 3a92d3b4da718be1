"""A store as Ollama keeps it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def blob(root: Path, data: bytes) -> str:
    """Put a blob into an Ollama store; its digest."""
    digest = hashlib.sha256(data).hexdigest()
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    (root / "blobs" / f"sha256-{digest}").write_bytes(data)
    return f"sha256:{digest}"


def manifest(root: Path, path: str, **layers: str) -> Path:
    """Write what `ollama pull` writes for a model."""
    file = root / "manifests" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    told = [
        {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": digest, "size": 1}
        for kind, digest in layers.items()
    ]
    told.append({"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "0" * 64, "size": 1})
    file.write_text(
        json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "config": {
                    "mediaType": "application/vnd.docker.container.image.v1+json",
                    "digest": "sha256:1",
                    "size": 1,
                },
                "layers": told,
            }
        )
    )
    return file
