"""The call `inventory`: what this kernel consists of and has loaded, by digest. A self-report, and no attestation."""

from __future__ import annotations

from msgspec import structs

from llmasos.kernel import audit
from llmasos.kernel.events import Measured
from llmasos.kernel.objects.request import Request
from llmasos.kernel.rights import is_shown
from llmasos.kernel.state import System
from llmasos.kernel.wait import Waiting, wait, wake
from llmasos.syscalls.records import Measure
from llmasos.syscalls.table import Inventory

_PATIENCE = 10.0  # seconds, until the package is measured


def installation(system: System, event: Measured) -> None:
    """The edge has measured the package."""
    system.package = Measure("package", f"llmasos {system.config.version}", event.digest, event.place)
    system.log("info", f"package: {event.files} files in {event.place} are sha256:{event.digest}")
    details = {"digest": event.digest, "files": event.files}
    audit.note(system, "package", "system", on={"path": event.place}, details=details)
    wake(system, system.measuring)


def inventory(system: System, request: Request, call: Inventory) -> list[Measure] | Waiting:
    """Row 19 of the table, `Inventory`."""
    if system.package is None:
        return wait(system.measuring, _PATIENCE, "the package is still being measured; try again")
    rows, owner = [system.package], request.program.owner
    for device in system.devices.values():
        if device.hello is not None:
            found = device.hello.libraries.items()
            rows += [Measure("library", path.rpartition("/")[2], digest, path, device.name) for path, digest in found]
        rows += [
            Measure("model", image.name, image.digest, image.path, device.name, image.trusted)
            for image in device.images.values()
            if image.digest and is_shown(system, owner, image)
        ]
    return rows if owner.operator else [structs.replace(one, place="") for one in rows]
