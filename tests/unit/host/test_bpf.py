"""Instructions of small programs, byte by byte; and what the kernel takes of them."""

from __future__ import annotations

import os
import struct
import sys

import pytest

from casemate.host import bpf


def fields(one: bytes) -> tuple[int, int, int, int, int]:
    """Code, two registers, offset, value (little-endian machines)."""
    code, registers, offset, value = struct.unpack("=BBhi", one)
    return code, registers & 15, registers >> 4, offset, value


@pytest.mark.skipif(sys.byteorder != "little", reason="missing: a little-endian machine")
def test_instructions_are_those_of_the_kernels_documentation() -> None:
    assert fields(bpf.load(4, 1, 16, 4)) == (0x61, 4, 1, 16, 0)
    assert fields(bpf.load(4, 2, 14, 1)) == (0x71, 4, 2, 14, 0)
    assert fields(bpf.load(4, 2, 20, 2)) == (0x69, 4, 2, 20, 0)
    assert fields(bpf.store(1, 32, 4)) == (0x63, 1, 4, 32, 0)
    assert fields(bpf.put(0, -1)) == (0xB4, 0, 0, 0, -1)


def test_every_jump_leads_to_the_end() -> None:
    parts = (bpf.put(4, 1), bpf.leave_if(4, "!=", 1), *bpf.leave_if_short(2, 3, 34, 5), bpf.put(4, 2))
    code = bpf.program(parts, bpf.NEXT)
    whole = [code[at : at + 8] for at in range(0, len(code), 8)]
    end = len(parts)
    assert len(whole) == end + 2
    jumps = [at for at, part in enumerate(parts) if isinstance(part, bpf.Jump)]
    assert len(jumps) == 2
    assert all(at + 1 + struct.unpack_from("=h", whole[at], 2)[0] == end for at in jumps)


def test_a_register_that_there_is_not_is_refused() -> None:
    with pytest.raises(AssertionError):
        bpf.put(11, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="missing: root")
def test_the_kernel_refuses_a_program_that_reads_beyond_the_packet() -> None:
    unchecked = (bpf.load(2, 1, bpf.DATA, 4), bpf.load(4, 2, 0, 4))
    with pytest.raises(OSError, match="BPF program"):
        os.close(bpf.load_ingress("unchecked", bpf.program(unchecked, bpf.NEXT)))
