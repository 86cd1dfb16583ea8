"""A machine's life, lived through a client that was generated from the API's document.

usage: life.py SOCKET FOLDER: umbra serves the API at SOCKET and has no machine. FOLDER has the kernel, the initramfs, an
image for a disk, the document, and the client. umbra is asked to end at the end.
"""

import sys
import time
from pathlib import Path

SOCKET, FOLDER = sys.argv[1], Path(sys.argv[2])
sys.path.insert(0, str(FOLDER))

from calls import Calls
from umbra_client.models import (
    BalloonConfig,
    ConsoleConfig,
    ConsoleMode,
    Contents,
    ConversionRequest,
    CpusConfig,
    DiskConfig,
    Fate,
    IsolationInUse,
    IsolationName,
    MemoryConfig,
    NetConfig,
    PayloadConfig,
    PlatformConfig,
    PolicyConfig,
    RemoveDevice,
    Resize,
    SerialConfig,
    State,
    VmConfig,
    VmState,
    VsockConfig,
)

MIB = 1 << 20
RAM, WINDOW = 512 * MIB, 16 * MIB
CONSOLE = FOLDER / "serial"
LIMIT = 600

api = Calls(SOCKET, (FOLDER / "openapi.json").read_text())


def waits(what, there):
    deadline = time.monotonic() + LIMIT
    while not there():
        assert time.monotonic() < deadline, f"no sign of {what}; the guest's console: {console()}"
        time.sleep(0.1)


def console():
    return CONSOLE.read_text(errors="replace") if CONSOLE.exists() else ""


def guest_says(words, times=1):
    waits(words, lambda: console().count(f"test: {words}") >= times)


def state_is(state):
    return api.does("vm.info").state == state


def configuration(isolation, **more):
    return VmConfig(
        payload=PayloadConfig(
            kernel=str(FOLDER / "vmlinuz"), initramfs=str(FOLDER / "initramfs"), cmdline="console=ttyS0 quiet panic=-1"
        ),
        cpus=CpusConfig(boot_vcpus=1, max_vcpus=1),
        platform=PlatformConfig(isolation=isolation),
        serial=SerialConfig(mode=ConsoleMode.FILE, file=str(CONSOLE)),
        console=ConsoleConfig(mode=ConsoleMode.OFF),
        **more,
    )


def is_created_and_booted():
    ping = api.does("vmm.ping")
    assert ping.pid > 0 and ping.version in ping.build_version
    assert api.does("openapi.json").additional_properties["paths"].keys() == {path for _, path in api.operations}
    api.refuses("vm.info", 404, "there is no machine")
    config = configuration(IsolationName.SOFTWARE, memory=MemoryConfig(size=RAM, unmappable=True, window=WINDOW))
    api.refuses("vm.create", 400, "payload.kernel", body=VmConfig(payload=PayloadConfig()))
    with api.streams("vm.events") as events:
        api.does("vm.create", 204, body=config)
        api.refuses("vm.create", 409, "already", body=config)
        api.refuses("vm.pause", 405, "not booted")
        assert state_is(VmState.CREATED)
        api.does("vm.boot", 204)
        lines = events.iter_lines()
        # Each second may bring memory.conversions as well: RAM is made private before the guest starts.
        names = (line.removeprefix("event: ") for line in lines if line.startswith("event: vm."))
        assert [next(names), next(names), next(names)] == ["vm.created", "vm.booting", "vm.booted"]
    guest_says("up")
    info = api.does("vm.info")
    assert info.state == VmState.RUNNING and info.memory_actual_size == RAM
    assert info.config.to_dict() == config.to_dict(), info.config
    assert info.isolation == IsolationInUse.SOFTWARE, info.isolation


def is_paused_and_resumed():
    api.does("vm.pause", 204)
    assert state_is(VmState.PAUSED)
    api.refuses("vm.pause", 405, "paused already")
    assert api.does("vm.memory-stats").ram_bytes == RAM
    api.does("vm.resume", 204)
    assert state_is(VmState.RUNNING)


def has_memory():
    runs = api.does("vm.memory-map").runs
    window = next(run for run in runs if run.window)
    assert sum(run.size for run in runs) == RAM and window.size == WINDOW and window.state == State.PRIVATE
    part = api.does("vm.memory-map", start=window.gpa, end=window.gpa + WINDOW, state=State.PRIVATE, limit=1)
    assert part.runs == [window] and part.next_ is None
    with api.streams("vm.memory-map", Accept="image/svg+xml") as picture:
        assert picture.headers["content-type"] == "image/svg+xml" and picture.read().startswith(b"<svg")

    def request(to):
        return ConversionRequest(gpa=window.gpa, size=MIB, to=to, contents=Contents.DISCARD)

    def shared():
        return any(run.window for run in api.does("vm.memory-map", state=State.SHARED).runs)

    before = api.does("vm.memory-stats")
    answer = api.does("vm.memory-convert", body=request(State.SHARED))
    assert (answer.state, answer.changed_bytes, answer.contents) == (State.SHARED, MIB, Fate.DISCARDED), answer
    assert shared()
    assert api.does("vm.memory-policy.set", body=PolicyConfig(host="refuse")).host == "refuse"
    api.refuses("vm.memory-convert", 403, "policy", body=request(State.PRIVATE))
    api.does("vm.memory-policy.set", body=PolicyConfig(host="allow"))
    assert api.does("vm.memory-policy").host == "allow"
    answer = api.does("vm.memory-convert", body=request(State.PRIVATE))
    assert (answer.state, answer.contents) == (State.PRIVATE, Fate.DISCARDED), answer
    assert not shared()
    assert api.does("vm.memory-stats").conversions_host == before.conversions_host + 2


def has_devices_for_a_while():
    image = FOLDER / "image"
    disk = DiskConfig(path=str(image), id="disk", serial="generated")
    added = api.does("vm.add-disk", body=disk)
    assert added.id == "disk"
    api.refuses("vm.add-disk", 409, "already", body=disk)
    guest_says(f"disk {image.stat().st_size // 512} generated")
    counted = api.does("vm.counters")["disk"]
    assert counted["read_bytes"] > 0, counted
    metrics = api.does("vmm.metrics")
    assert 'umbra_vm_state{state="Running"} 1' in metrics and 'device="disk"' in metrics, metrics
    api.does("vm.add-net", body=NetConfig(id="net"))
    api.does("vm.add-vsock", body=VsockConfig(id="vsock", cid=3, socket=str(FOLDER / "vsock")))
    tree = api.does("vm.info").device_tree
    assert tree["disk"].pci_bdf == added.bdf and tree["net"].pci_bdf and tree["vsock"].pci_bdf
    api.refuses("vm.remove-device", 404, "no device", body=RemoveDevice(id="nothing"))
    for device in ["disk", "net", "vsock"]:
        api.does("vm.remove-device", 204, body=RemoveDevice(id=device))
    guest_says("no disk")
    waits("their end", lambda: not {"disk", "net", "vsock"} & set(api.does("vm.info").device_tree.additional_keys))


def is_refused_what_it_cannot_have():
    for name in api.never_successful():
        api.refuses(name, 400, "is not supported")
    api.refuses("vm.resize", 400, "no balloon", body=Resize(desired_balloon=MIB))


def is_rebooted_and_switched_off():
    api.does("vm.nmi", 204)
    waits("the interrupt", lambda: "NMI received" in console())
    api.does("vm.reboot", 204)
    guest_says("up", times=2)
    api.does("vm.power-button", 204)
    # A key, KEY_POWER, pressed (Linux input-event-codes.h).
    guest_says("pushed 1 116 1")
    waits("the power-off", lambda: state_is(VmState.SHUTDOWN))
    api.refuses("vm.pause", 405, "not booted")
    api.does("vm.boot", 204)
    api.does("vm.shutdown", 204)
    assert state_is(VmState.SHUTDOWN)
    api.does("vm.delete", 204)
    api.refuses("vm.info", 404, "there is no machine")


def has_a_balloon():
    config = configuration(IsolationName.NONE, memory=MemoryConfig(size=RAM), balloon=BalloonConfig(size=0))
    api.does("vm.create", 204, body=config)

    def size():
        return api.does("vm.info").config.balloon.size

    def target():
        counters = api.does("vm.counters")
        balloon = next(name for name in counters.additional_keys if name.startswith("_balloon"))
        return counters[balloon]["target_bytes"]

    api.does("vm.resize", 204, body=Resize(desired_balloon=MIB))
    assert size() == MIB
    api.does("vm.boot", 204)
    # As it was told before it is booted, and before it is booted anew.
    assert target() == MIB
    api.does("vm.resize", 204, body=Resize(desired_balloon=2 * MIB))
    api.refuses("vm.resize", 400, "ask for less", body=Resize(desired_balloon=RAM))
    api.does("vm.reboot", 204)
    assert size() == target() == 2 * MIB
    info = api.does("vm.info")
    assert RAM - 2 * MIB <= info.memory_actual_size <= RAM, info.memory_actual_size
    api.does("vm.delete", 204)


for part in [
    is_created_and_booted,
    is_paused_and_resumed,
    has_memory,
    has_devices_for_a_while,
    is_refused_what_it_cannot_have,
    is_rebooted_and_switched_off,
    has_a_balloon,
]:
    begun = time.monotonic()
    part()
    print(f"{part.__name__.replace('_', ' ')}: {time.monotonic() - begun:.1f} s", flush=True)
api.does("vmm.shutdown", 204)
left_out = list(api.left_out())
assert not left_out, f"this test does not cover these operations of the document (and the answers were): {left_out}"
print(f"{len(api.operations)} operations were called")
