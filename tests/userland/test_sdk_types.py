"""What a program under a type checker needs: every type has a name to import, and every enum is text as well."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import llmasos
from llmasos import aio
from llmasos.syscalls.errno import SyscallError
from llmasos.userland.sdk import arguments
from llmasos.userland.sdk.system import Process, System

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["System", "Process", "LLM", "Client", "Image", "Instance"]
# What `System.run` and `system(CALL)` take is of llmasos.syscalls.table and the SDK's own, as are a Language's parts.
NOT_NAMED = {"Call", "Together", "Listener", "Tokenizer", "ChatFormat"}
NAMES: dict[type[enum.Enum], Any] = {
    llmasos.Advice: arguments.AdviceName,
    llmasos.KvAction: arguments.KvActionName,
    llmasos.SchedClass: arguments.SchedClassName,
    llmasos.Signal: arguments.SignalName,
}


def functions(face: Any) -> Iterator[tuple[str, Any]]:
    """The public methods of a face, without what decorates them."""
    for name in CLASSES:
        of = getattr(face, name)
        for method in dir(of):
            if not method.startswith("_"):
                found = inspect.getattr_static(of, method)
                found = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
                if callable(found):
                    yield f"{name}.{method}", inspect.unwrap(found)


def types_in(hint: Any, seen: set[type]) -> set[type]:
    """The types of this system in an annotation, and in the fields of those that are records."""
    for part in typing.get_args(hint):
        types_in(part, seen)
    kind = typing.get_origin(hint) or hint
    if isinstance(kind, type) and kind.__module__.startswith("llmasos") and kind not in seen:
        seen.add(kind)
        if issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind):
            for field in typing.get_type_hints(kind).values():
                types_in(field, seen)
    return seen


@pytest.mark.parametrize("face", [llmasos, aio], ids=["blocking", "aio"])
def test_every_type_of_a_signature_can_be_imported_by_name(face: Any) -> None:
    missing = []
    for where, function in functions(face):
        names = {**vars(sys.modules[function.__module__]), "System": face.System}
        for annotation in inspect.get_annotations(function).values():
            hint = eval(annotation, names) if isinstance(annotation, str) else annotation
            missing += [
                f"{where}: {kind.__module__}.{kind.__name__}"
                for kind in types_in(hint, set())
                if kind.__name__ not in NOT_NAMED and getattr(face, kind.__name__, None) is not kind
            ]
    assert not missing


def test_the_faces_have_the_same_names_and_the_guide_has_them_too() -> None:
    assert set(aio.__all__) == set(llmasos.__all__) - {"aio"}
    guide = (ROOT / "docs" / "programming.md").read_text()
    assert [name for name in llmasos.__all__ if f"`{name}`" not in guide and not re.search(rf"\b{name}\b", guide)] == []


def test_what_an_editor_completes_is_public() -> None:
    shown = {name for name in dir(llmasos) if not name.startswith("__")}
    assert shown == set(llmasos.__all__)
    assert re.fullmatch(r"\d+\.\d+.*", llmasos.__version__)
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = llmasos.nothing_such


@pytest.mark.processes
def test_names_are_imported_when_they_are_used() -> None:
    look = "import sys, llmasos; print([m for m in sys.modules if m.startswith(('llmasos.', 'trio', 'zmq', 'msgspec'))])"
    said = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", NAMES, ids=lambda kind: str(kind.__name__))
def test_the_words_of_an_enum_are_its_members(kind: type[enum.Enum]) -> None:
    words = typing.get_args(NAMES[kind])
    assert [arguments.member(kind, word) for word in words] == list(kind)
    assert [arguments.member(kind, one) for one in kind] == list(kind)


def test_no_public_function_takes_an_enum_without_its_words() -> None:
    for where, function in functions(llmasos):
        names = {**vars(sys.modules[function.__module__]), "System": System}
        for name, annotation in inspect.get_annotations(function).items():
            hint = eval(annotation, names) if isinstance(annotation, str) else annotation
            kinds = {one for one in typing.get_args(hint) if isinstance(one, type) and issubclass(one, enum.Enum)}
            if name != "return" and isinstance(hint, type) and issubclass(hint, enum.Enum):
                kinds.add(hint)
            for kind in kinds:
                assert NAMES[kind] in typing.get_args(hint) or set(typing.get_args(NAMES[kind])) <= {
                    word for part in typing.get_args(hint) for word in typing.get_args(part)
                }, f"{where} {name}"


USES: dict[str, tuple[Callable[[System, Process, Any], object], list[Any], str]] = {
    "signal": (lambda s, p, one: p.signal(one), ["STOP", "CONT", llmasos.Signal.CONT], "'KILL'"),
    "nice": (lambda s, p, one: p.nice(0, one), ["batch", "FAIR", llmasos.SchedClass.FAIR], "'batch'"),
    "spawn": (lambda s, p, one: s.spawn(sched_class=one).end(), ["idle", llmasos.SchedClass.IDLE], "'idle'"),
    "advise": (lambda s, p, one: s.advise("tiny", one), ["willneed", "NORMAL", llmasos.Advice.NORMAL], "'pin'"),
    "group": (lambda s, p, one: s.group("words", kv_action=one), ["fail", llmasos.KvAction.SPILL], "'spill'"),
}


@pytest.mark.processes
@pytest.mark.parametrize("way", USES)
def test_an_enum_is_given_as_text_too_and_a_wrong_word_lists_them(cpu_system: System, way: str) -> None:
    act, good, word = USES[way]
    with cpu_system.spawn() as process:
        for one in good:
            act(cpu_system, process, one)
        with pytest.raises(SyscallError, match=r"^EINVAL: .*wanted .*" + word):
            act(cpu_system, process, "nonsense")
