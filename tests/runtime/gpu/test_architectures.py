from __future__ import annotations

import pytest

from wolong_fx.runtime.gpu import ARCHITECTURES, resident_blocks

H200 = ARCHITECTURES["sm_90"]


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "blocks"),
    [
        (32, 0, 4, 16),  # 2,048 threads
        (16, 0, 1, 32),  # no more blocks than 32
        (255, 0, 4, 2),  # 8 warps of 256 registers a thread fill the four register files
        (128, 0, 8, 2),
        (40, 0, 4, 12),  # 40 * 32 = 1,280 registers a warp: 12 warps in each file of 16,384
        (32, 100_000, 4, 2),
        (32, 232_448, 4, 1),
        (32, 232_449, 4, 0),
    ],
)
def test_the_scarcest_resource_decides_how_many_blocks_fit(registers, shared, warps, blocks):
    assert resident_blocks(H200, registers=registers, shared_bytes=shared, warps=warps) == blocks


def test_a_block_of_more_warps_than_a_register_file_has_room_for_does_not_fit():
    assert resident_blocks(H200, registers=255, shared_bytes=0, warps=16) == 0
