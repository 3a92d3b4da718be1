"""Whether a model is one of those that this machine trusts: by its digest, or by a signature of its files.

Signatures are those of the OpenSSF's model-signing with a key (the extra `trust`), which needs no network: a file
`model.sig` in the model's directory, or `NAME.gguf.sig` beside a single file. The library hashes all files that are
signed, and files that were added are found too.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from llmasos.drivers.protocol import Trust
from llmasos.syscalls.errno import Errno, SyscallError

SIGNATURE = "model.sig"


def check(trust: Trust, model: str, place: Path | None, digest: str) -> str:
    """How a model is trusted, in words; `place` is where its files are (None: a model without files). Raises EPERM, with
    the digest found; ENOTSUP: signatures cannot be checked here."""
    if digest in trust.digests:
        return "its digest is known"
    reasons = ["its digest is none of those in [trust]"] if trust.digests else []
    if trust.keys and place is not None:
        signature = place / SIGNATURE if place.is_dir() else place.with_name(place.name + ".sig")
        for number, key in enumerate(trust.keys, 1):
            if not (why := _unsigned(place, signature, key)):
                return f"{signature.name} is by key {number} of [trust]"
        reasons.append(why)
    raise SyscallError(
        Errno.EPERM,
        f"model {model} is not trusted: {'; '.join(reasons) or 'it has no files that could be signed'}; "
        f"its digest is sha256:{digest}",
    )


def _unsigned(place: Path, signature: Path, key: str) -> str:
    """Why the signature of a model does not hold, or ""."""
    if not signature.is_file():
        return f"there is no {signature}"
    try:
        from model_signing import hashing, verifying
    except ImportError:
        raise SyscallError(
            Errno.ENOTSUP, "signatures of models are checked by model-signing: pip install 'llmasos[trust]'"
        ) from None
    with tempfile.NamedTemporaryFile(suffix=".pub") as held:
        held.write(key.encode())
        held.flush()
        try:
            # As the library's command does: all files but the signature, and no others than were signed.
            hashed = hashing.Config().set_ignored_paths(paths=[signature], ignore_git_paths=True)
            verifier = verifying.Config().set_hashing_config(hashed).use_elliptic_key_verifier(public_key=Path(held.name))
            verifier.verify(place, signature)
        except Exception as error:  # the library has no class of its own, and a signature is anybody's bytes
            return f"{signature} does not hold: {str(error).strip() or type(error).__name__}"
    return ""
