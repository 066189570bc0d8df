from __future__ import annotations

import pytest

from wolong_fx.testing.machine_code import barrier_events, count_barriers

SASS = """
        Function : wolong
        /*0120*/              @!P3 STG.E [R6.64+0x1000], RZ ;           /* 0x00 */
                                                                        /* 0x00 */
        /*0150*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;        /* 0x00 */
        /*0160*/               @P2 BRA 0x270 ;                          /* 0x00 */
        /*0180*/                   MEMBAR.ALL.GPU ;                     /* 0x00 */
        /*01b0*/                   ERRBAR;                              /* 0x00 */
        /*0200*/               @P0 ATOMG.E.ADD.STRONG.GPU PT, R11, [R4.64], R11 ; /* 0x00 */
        /*0260*/                   CCTL.IVALL ;                         /* 0x00 */
        /*02e0*/                   LDG.E.STRONG.GPU R9, [R4.64] ;       /* 0x00 */
        /*02f0*/                   CCTL.IVALL ;                         /* 0x00 */
        /*0320*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;        /* 0x00 */
        /*1a5d0*/                  LDG.E R11, [R2.64] ;                 /* 0x00 */
"""


def test_a_barrier_is_found_among_other_accesses():
    assert barrier_events(SASS) == "xmfaipimx"
    assert count_barriers(barrier_events(SASS)) == 1


@pytest.mark.parametrize("events", ["xmx", "mxmx", "", "mfaimpimmfaipipim", "mmfaimmpimmpim"])
def test_barriers_in_order_are_counted(events):
    assert count_barriers(events) == events.count("a")


@pytest.mark.parametrize(
    "events",
    [
        "faipim",
        "maipim",
        "mfapim",
        "mfaipi",
        "mfaim",
        "mfxaipim",
        "mfaixpim",
        "mfaipixm",
        "mfaipm",
        "mpifaim",
    ],
)
def test_a_barrier_with_an_instruction_missing_or_moved_is_an_error(events):
    with pytest.raises(AssertionError, match="out of order"):
        count_barriers(events)
