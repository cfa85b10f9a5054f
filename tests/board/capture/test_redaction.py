from pathlib import Path

import pytest

from trilithon.board.capture.redaction import Redactor, redacted_capture

PRIVATE = Redactor(names=["anns-board", "ann", "pi", "root"], home=Path("/srv/people/ann"))


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("Serial\t\t: 10000000abcdef12\nModel\t\t: Radxa", "Serial\t\t: removed\nModel\t\t: Radxa"),
        ("eth0 02:1a:2b:3c:4d:5e up, 02-1A-2B-3C-4D-5E", "eth0 removed-mac up, removed-mac"),
        (
            "root=PARTUUID=a1b2-01 androidboot.serialno=c0ffee quiet",
            "root=PARTUUID=removed androidboot.serialno=removed quiet",
        ),
        ("UUID 0a1b2c3d-0a1b-2c3d-4e5f-0a1b2c3d4e5f", "UUID removed-uuid"),
        ("/srv/people/ann/models /srv/people/annex", "/home/user/models /srv/people/annex"),
        ("/home/bert/x:/home/ann, /home/user/y", "/home/user/x:/home/user, /home/user/y"),
        ("Linux anns-board 6.1 ann@anns-board", "Linux removed 6.1 removed@removed"),
        ("planned by ANN, anne and joann", "planned by removed, anne and joann"),
        (
            "trl-0123456789abcdefXYZ sk-proj-abcdefghijklmnop hf_abcdefghijklmnopqrs",
            "removed-key removed-key removed-key",
        ),
        ("Authorization: Bearer abcdefghijk", "Authorization: Bearer removed"),
        ("--api-key=hush --token hush2 password: hush3", "--api-key=removed --token hush2 password: removed"),
        # Names that every image has are no secret, and device trees are full of them.
        ("Raspberry Pi root rockchip,rk3588", "Raspberry Pi root rockchip,rk3588"),
        ("E RKNN: [17:19:34.670] op id: 0", "E RKNN: [17:19:34.670] op id: 0"),
        ("0-3,6 fd5d0000.npu 2112000000", "0-3,6 fd5d0000.npu 2112000000"),
    ],
)
def test_only_what_identifies_an_owner_is_removed(text: str, redacted: str) -> None:
    assert PRIVATE.text(text) == redacted


def test_keys_and_nested_values_are_redacted_too() -> None:
    value = {"/srv/people/ann/x": [{"name": "ann", "size": 5, "there": None}]}
    assert PRIVATE.values(value) == {"/home/user/x": [{"name": "removed", "size": 5, "there": None}]}


def test_files_that_hold_serial_numbers_and_variables_lose_their_content() -> None:
    capture = {
        "globs": {},
        "paths": {
            "/proc/device-tree/serial-number": {"access": "readable", "text": "c0ffee"},
            "/sys/class/net/eth0/address": {"access": "readable", "text": "00:11:22:33:44:55"},
            "/proc/self/environ": {
                "access": "readable",
                "text": "SECRET=x\0LD_LIBRARY_PATH=/opt/lib\0KUBERNETES_PORT=y\0",
            },
            "/proc/self/mountinfo": {
                "access": "readable",
                "text": "1 0 8:1 / / rw - ext4 /dev/sda rw,x=y\n2 1 0:9 / /n rw - nfs4 nas.lan:/ann rw,addr=10.0.0.3\n",
            },
            "/sys/odd": {"access": "readable", "base64": "/2FubiA="},  # \xff, then "ann "
        },
    }
    assert redacted_capture(capture, PRIVATE)["paths"] == {
        "/proc/device-tree/serial-number": {"access": "readable"},
        "/sys/class/net/eth0/address": {"access": "readable"},
        "/proc/self/environ": {"access": "readable", "text": "LD_LIBRARY_PATH=/opt/lib\0KUBERNETES_PORT=removed"},
        "/proc/self/mountinfo": {
            "access": "readable",
            "text": "1 0 8:1 / / rw - ext4 /dev/sda rw,x=y\n2 1 0:9 / /n rw - nfs4 removed rw\n",
        },
        "/sys/odd": {"access": "readable", "base64": "/3JlbW92ZWQg"},
    }
