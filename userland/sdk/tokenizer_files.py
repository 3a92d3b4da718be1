"""A tokenizer from a model's files: `tokenizer.json` decides, whatever class the model names.

The other files are those that transformers' PreTrainedTokenizerFast reads (`tokenizer_config.json`,
`special_tokens_map.json`, `added_tokens.json`, chat templates), added to the tokenizer in the same order, because the
order makes the ids. Files of other kinds are left to transformers, which here runs no code of a repository and asks
nothing.
"""

from __future__ import annotations

import functools
import json
import os
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk.tokenizer import Settings, Tokenizer
from llmasos.userland.sdk.tokenizer_fields import NAMED as _NAMED
from llmasos.userland.sdk.tokenizer_fields import (
    checked_fields,
    checked_ids,
    is_token,
    versioned,
    with_mistral_words,
)

TOKENIZER, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_FURTHER = "additional_chat_templates"
_MOST = {TOKENIZER: 256 << 20, TEMPLATE: 1 << 20}  # bytes; the largest published are 35 MB and 20 kB
_MOST_ELSE = 32 << 20
_LONGEST = 4096  # characters of an added token; the longest published have some 100

_loading = threading.Lock()  # a tokenizer is loaded once, and two threads never import transformers at once


def _forked() -> None:
    global _loading
    _loading = threading.Lock()  # another thread of the parent may have held it, and is not here


os.register_at_fork(after_in_child=_forked)


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a model directory, a GGUF file or a name of the hub. It is loaded anew when its files have
    changed.

    Raises SyscallError: ENOENT (no such directory), EIO (its files are no tokenizer).
    """
    place = path
    if not os.path.exists(path) or _gguf_alone(path):
        from llmasos.modelfiles import source  # imports numpy, which the tokenizer of a directory does not need

        place = os.fspath(source.find(path))
    with _loading:
        return _loaded(place, _stamps(place))


def _gguf_alone(path: str) -> bool:
    """Whether that is a directory of GGUF files, which hold the vocabulary."""
    if not os.path.isdir(path) or os.path.exists(os.path.join(path, "config.json")):
        return False
    names = os.listdir(path)
    return TOKENIZER not in names and any(name.endswith(".gguf") for name in names)


def _stamps(path: str) -> tuple[tuple[str, int, int, int], ...]:
    """Values that change when the files of a tokenizer change."""
    found = []
    if os.path.isfile(path):
        of = os.stat(path)
        return ((path, of.st_mtime_ns, of.st_size, of.st_ino),)
    for place in (path, os.path.join(path, _FURTHER)):
        try:
            names = sorted(os.listdir(place))
        except OSError:
            continue
        for name in names:
            if name.endswith((".json", ".jinja", ".model", ".txt", ".tiktoken")):
                try:
                    of = os.stat(os.path.join(place, name))
                except OSError:
                    continue
                found.append((name, of.st_mtime_ns, of.st_size, of.st_ino))
    return tuple(found)


@functools.lru_cache(maxsize=16)
def _loaded(path: str, stamps: object) -> Tokenizer:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        if os.path.isfile(path):
            from llmasos.userland.sdk import gguf_words

            return gguf_words.load(Path(path))
        if (file := _tokenizer_of(Path(path))).exists():
            return _from_directory(Path(path), file)
        return _by_transformers(path)
    except SyscallError:
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        lines = str(error).strip().splitlines()
        raise SyscallError(
            Errno.ENOENT if not os.path.isdir(path) else Errno.EIO,
            f"no tokenizer can be loaded from {path}: {lines[0] if lines else type(error).__name__}; work with token "
            "ids, or add tokenizer files to the model",
        ) from error


def _tokenizer_of(directory: Path) -> Path:
    """The file of a directory that is its tokenizer, or None. Raises EIO for a wrong configuration."""
    config = _read_json(directory / CONFIG)
    checked_fields(directory / CONFIG, config)
    names = config.get("fast_tokenizer_files")
    if names is None:
        return directory / TOKENIZER
    file = directory / versioned(directory / CONFIG, names, TOKENIZER)
    if not file.exists() and file.name != TOKENIZER:
        raise SyscallError(
            Errno.ENOENT,
            f"{directory / CONFIG} says that the tokenizer is {file.name}; there is no such file",
        )
    return file


def _from_directory(directory: Path, file: Path) -> Tokenizer:
    import tokenizers

    config = _read_json(directory / CONFIG)
    text = _read(file)
    core = tokenizers.Tokenizer.from_buffer(text)
    if config.get("fix_mistral_regex"):
        there = (directory / "config.json").exists()
        with_mistral_words(core, config, _read_json(directory / "config.json") if there else None)
    templates = _templates(directory, config)
    if not config.get("extra_special_tokens") and "additional_special_tokens" in config:
        config["extra_special_tokens"] = config.pop("additional_special_tokens")
    others = {key: value for key, value in config.items() if key.endswith("_token") and key not in _NAMED}
    others |= _named_extra(config)
    if "added_tokens_decoder" in config:
        listed = {int(i): _added(token) for i, token in config["added_tokens_decoder"].items()}
    else:
        listed = _of_older_files(directory, config, text)
    if core.padding is not None:
        config.setdefault("pad_token", core.padding["pad_token"])
    by_content = {token.content: token for token in listed.values()}
    named: dict[str, Any] = {}
    others |= _named_extra(config)
    extra = config.get("extra_special_tokens", config.get("additional_special_tokens")) or []
    for key, value in [*((key, config.get(key)) for key in _NAMED), *others.items()]:
        if isinstance(value, tokenizers.AddedToken) or is_token(value):
            token = _token(value)
            named[key] = by_content.get(str(_content(token)), token) if key in _NAMED else token
    _complete(core, listed, named, [_token(token) for token in extra])
    longest = max((len(token.content) for token in core.get_added_tokens_decoder().values()), default=0)
    if longest > _LONGEST:
        raise ValueError(f"one of its added tokens has {longest} characters; at most {_LONGEST} are looked for in a text")
    control = config.get("chat_control_tokens")
    settings = Settings(
        named={key: _content(token) for key, token in named.items()},
        extra=tuple(_content(_token(token)) for token in extra),
        templates=templates,
        control=None if control is None else tuple(map(str, control)),
        response_template=config.get("response_template"),
        split_special=bool(config.get("split_special_tokens", False)),
        where=str(file),
    )
    return Tokenizer(core, settings)


def _named_extra(config: dict[str, Any]) -> dict[str, Any]:
    """Further special tokens that have names; they are removed from the configuration."""
    if not isinstance(config.get("extra_special_tokens"), dict):
        return {}
    return dict(config.pop("extra_special_tokens"))


def _complete(core: Any, listed: Mapping[int, Any], named: Mapping[str, Any], extra: list[Any]) -> None:
    """Add the tokens that the other files name, in the order that gives them their ids."""
    from tokenizers import AddedToken

    adding = [token for _, token in sorted(listed.items())]
    known = {token.content for token in core.get_added_tokens_decoder().values()}
    known |= {token.content for token in adding}
    for token in [*named.values(), *extra]:
        if _content(token) not in known and token not in adding:
            adding.append(token)
    special = {_content(token) for token in named.values()}
    ready = []
    for token in adding:
        if isinstance(token, str):
            token = AddedToken(token, special=True)
        elif token.content in special:
            token.special = True
        ready.append(token)
    if ready:
        core.add_tokens(ready)


def _of_older_files(directory: Path, config: dict[str, Any], tokenizer: bytes) -> dict[int, Any]:
    """The added tokens of files older than `added_tokens_decoder`; the names of the special ones go into `config`."""
    from tokenizers import AddedToken

    older, ids = directory / "special_tokens_map.json", directory / "added_tokens.json"
    marked, numbered = _read_json(older), _read_json(ids)
    checked_fields(older, marked)
    checked_ids(ids, numbered)
    for key, value in marked.items():
        if key == "extra_special_tokens" and isinstance(value, list):
            before = list(config.get(key) or [])
            value = before + [token for token in map(_token, value) if token not in before]
        elif isinstance(value, dict) and key != "extra_special_tokens":
            value = _added({**value, "special": True})
        config[key] = value
    listed: dict[int, Any] = {}
    extra = config.get("extra_special_tokens") or []
    special = {_content(_token(config[key])) for key in _NAMED if config.get(key)}
    special |= {_content(_token(token)) for token in extra}
    for content, i in numbered.items():
        listed[int(i)] = AddedToken(content, normalized=content not in special, special=content in special)
    for token in json.loads(tokenizer).get("added_tokens", []):
        i = int(token.pop("id"))
        listed[i] = AddedToken(**token)
    return listed


def _added(token: Any) -> Any:
    """An added token as JSON writes it."""
    from tokenizers import AddedToken

    if isinstance(token, AddedToken):
        return token
    return AddedToken(**{key: value for key, value in token.items() if key != "__type"})


def _token(value: Any) -> Any:
    """A token's text, or everything about it."""
    return value if isinstance(value, str) else _added(value)


def _content(token: Any) -> str:
    return token if isinstance(token, str) else str(token.content)


def _templates(directory: Path, config: dict[str, Any]) -> dict[str, str]:
    """The chat templates by name; files precede the configuration."""
    found: dict[str, str] = {}
    if (directory / TEMPLATE).exists():
        found["default"] = _read(directory / TEMPLATE).decode()
    further = directory / _FURTHER
    if further.is_dir():
        found |= {file.name.removesuffix(".jinja"): _read(file).decode() for file in sorted(further.glob("*.jinja"))}
    given = config.get("chat_template")
    if found or given is None:
        return found
    if isinstance(given, str):
        return {"default": given}
    if isinstance(given, list):
        return {str(one["name"]): str(one["template"]) for one in given}
    return {str(name): str(source) for name, source in given.items()}


def _read_json(file: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file."""
    if not file.exists():
        return {}
    try:
        found = json.loads(_read(file))
    except (ValueError, RecursionError) as error:
        raise SyscallError(Errno.EIO, f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise SyscallError(Errno.EIO, f"{file} holds {type(found).__name__}, not an object")
    return cast(dict[str, Any], found)


def _read(file: Path) -> bytes:
    """The text of a regular file of tolerable size."""
    of = file.stat()
    most = (
        _MOST[TOKENIZER]
        if file.name.startswith("tokenizer.")
        else _MOST.get(file.name, _MOST[TEMPLATE] if file.suffix == ".jinja" else _MOST_ELSE)
    )
    if not stat.S_ISREG(of.st_mode) or of.st_size > most:
        what = f"has {of.st_size} bytes" if stat.S_ISREG(of.st_mode) else "is no regular file"
        raise SyscallError(Errno.EIO, f"{file} {what}; a file of at most {most} bytes was expected there")
    return file.read_bytes()


def _by_transformers(path: str) -> Tokenizer:
    """A tokenizer from files other than tokenizer.json, which transformers converts."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise SyscallError(
            Errno.ENOTSUP,
            f"{path} has no {TOKENIZER}; its tokenizer needs transformers, which is not installed: pip install "
            "transformers, or work with token ids",
        ) from None
    found = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    core = getattr(found, "backend_tokenizer", None)
    if core is None:
        raise SyscallError(
            Errno.ENOTSUP,
            f"the tokenizer of {path} ({type(found).__name__}) cannot be written as {TOKENIZER}; work with token ids",
        )
    control_only = {*found.all_special_tokens, *map(str, found.added_tokens_decoder.values())}
    if core.get_vocab(with_added_tokens=False).keys() <= control_only:  # a class of a model's own, made without a file
        raise SyscallError(
            Errno.EIO,
            f"{path} has no files of a tokenizer; work with token ids, or add {TOKENIZER} to the model",
        )
    templates = found.chat_template or {}
    if isinstance(templates, str):
        templates = {"default": templates}
    control = getattr(found, "chat_control_tokens", None)
    settings = Settings(
        named=dict(found.special_tokens_map),
        extra=tuple(map(str, found.extra_special_tokens)),
        templates=templates,
        control=None if control is None else tuple(control),
        split_special=bool(found.split_special_tokens),
        where=path,
    )
    return Tokenizer(core, settings)
