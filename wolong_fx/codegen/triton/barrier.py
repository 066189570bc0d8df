"""The grid barrier: no block goes on before all have arrived, and all see what was written before.

Protocol (the sense-by-top-bit barrier of CUDA's cooperative groups). One 32-bit word, zero before its
first use, serves all rounds. In a round, every block adds to it once: block 0 adds 2^31 - (G - 1), each of
the other G - 1 adds 1. Together they add exactly 2^31, so a round flips the top bit and leaves the low 31
bits as they were.

Proof, for G blocks that are resident together:

1. *Nobody leaves early.* Let the word be w, low bits 0, when a round begins. While at least one block has
   not arrived, the sum of what was added is less than 2^31 and at least 0: without block 0 it is at most
   G - 1; with it, but without one of the others, at most 2^31 - 1. The low bits do not carry and the top bit
   stays w's. A block leaves when it reads another top bit than its own addition found, which is w's.
2. *Everybody leaves.* After the last arrival the top bit is flipped, and it stays so until every block has
   arrived at the next round, which needs every block to have left this one.
3. *No reset.* The low bits are 0 again, so the next round begins as this one did, with the other top bit.
4. *What was written before is visible after.* The first debug_barrier orders the stores of all threads of a
   block before the addition of one of them (block scope); the addition releases them (gpu scope). All
   additions form one release sequence on the word; the read that leaves acquires it, hence every block's
   stores; the second debug_barrier hands that on to all threads of the block. Causality order is transitive
   over scopes that include each other (PTX memory model, "morally strong" operations), so plain loads after
   are right.

Blocks that are not resident together wait for ever: the launch is cooperative, which guarantees residence
or fails.
"""

import triton
import triton.language as tl


@triton.jit
def grid_barrier(word, G: tl.constexpr):
    """All G blocks of the grid meet. word: uint32, alone in its cache line, only ever passed to this
    function."""
    tl.debug_barrier()
    add = tl.where(tl.program_id(0) == 0, 0x80000000 - (G - 1), 1).to(tl.uint32)
    before = tl.atomic_add(word, add, sem="acq_rel", scope="gpu")
    now = tl.atomic_add(word, 0, sem="acquire", scope="gpu")
    while ((before ^ now) & 0x80000000) == 0:
        now = tl.atomic_add(word, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()


@triton.jit
def grid_barrier_by_one_thread(word, G: tl.constexpr):
    """As grid_barrier, on NVIDIA's GPUs alone: one thread arrives and polls while the others wait once.

    Triton's atomics are for all threads of a block: every poll above ends in barriers of the block, which
    hand its result around. The words of the proof hold for the one thread here.
    """
    tl.debug_barrier()
    add = tl.where(tl.program_id(0) == 0, 0x80000000 - (G - 1), 1).to(tl.uint32)
    tl.inline_asm_elementwise(
        """
        {
            .reg .pred is_waiting;
            .reg .u32 thread, before, now;
            mov.u32 thread, %tid.x;
            setp.ne.u32 is_waiting, thread, 0;
            @is_waiting bra LEAVE;
            atom.add.acq_rel.gpu.global.u32 before, [$1], $2;
        POLL:
            ld.acquire.gpu.global.u32 now, [$1];
            xor.b32 now, now, before;
            setp.ge.s32 is_waiting, now, 0;
            @is_waiting bra POLL;
        LEAVE:
            mov.u32 $0, 0;
        }
        """,
        "=r,l,r",
        [word, add],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
    tl.debug_barrier()
