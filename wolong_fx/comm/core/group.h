// What the ranks of a group see of each other. Each rank writes its own `Control` and its own memory, and
// reads everybody's: one writer a word, and no lock between processes.
//
// `arrived` is the one flag. It counts the phases a rank has finished; a phase of an operation begins on a
// rank when all have arrived at the one before. Every operation begins with such a meeting, and all ranks
// decide from the calls that were published there which phases follow, so the counters stay in step.
//
// What is published for operation s (call, pieces, slot) lies in place s % 2. A rank writes that place again
// for s + 2, which it begins after the meeting of s + 1, to which everybody came after s.
#pragma once
#include "heap.h"
#include "reduce.h"

constexpr u64 LINE = 64;
constexpr u64 SLOT_BYTES = 32 << 10;  // operands up to this size travel with the meeting itself
constexpr u64 STAGE_BYTES =
    256 << 10;            // of larger ones outside the arena: stays in the caches of a few ranks
constexpr u32 RING = 64;  // messages on their way between two ranks
constexpr u64 SITE_BYTES = 480;

enum class Kind : u32 { BARRIER, REDUCE, EXCHANGE, SEND, RECEIVE };

enum class Status : i32 { RUNNING, DONE, TIMED_OUT, PEER_DIED, ABORTED, MISMATCH, NO_MEMORY, FORKED };

struct Header {  // of a process's memory
    alignas(LINE) u32 sleepers;
    alignas(LINE) u32 doorbell;
};

constexpr u64 HEADER_BYTES = 4096;

struct Peer {
    u8* base;
    u64 bytes;
    i32 process;  // a pidfd, or -1 where it is this process
    Header& header() const { return *(Header*)base; }
};

// What a rank called, for comparison, and where its operand lies.
struct Call {
    u64 sequence;
    u32 name;  // of the operation as users know it
    Kind kind;
    DType dtype;
    ReduceOp op;
    i32 root;       // that wants the result or has the operand; -1: all
    u32 is_shared;  // of exchanges: whether every destination gets the same piece
    u64 count;      // of elements of the operand; 0 where ranks may differ
    u64 part;       // elements that each destination gets of a reduction; 0: all
    u64 offset;     // in the rank's memory; NOWHERE: outside the arena
};

struct Piece {  // of an operand, for one destination
    u64 begin, bytes;
};

struct Message {
    i64 tag;
    u64 offset, bytes;
};

struct Outbox {  // messages to one rank
    alignas(LINE) u64 sent;
    Message ring[RING];
};

struct Control {
    alignas(LINE) u64 arrived;
    alignas(LINE) u64 failure;  // 0, or status << 32 | rank that is to blame
    alignas(LINE) u64 has_left;
    alignas(LINE) u64 has_site;
    char site[SITE_BYTES];  // where the user's program made the call that does not match
    alignas(LINE) Call calls[2];
};

// Where the parts of a rank's share of a group lie after its `Control`.
struct Layout {
    u64 pieces, taken, outboxes, slots, stages, bytes;

    explicit Layout(u32 ranks) {
        pieces = round_up(sizeof(Control), LINE);
        taken = pieces + round_up(2 * ranks * sizeof(Piece), LINE);
        outboxes = taken + ranks * LINE;
        slots = round_up(outboxes + ranks * sizeof(Outbox), 4096);
        stages = slots + 2 * SLOT_BYTES;
        bytes = stages + 2 * STAGE_BYTES;
    }
};

struct Share {  // of one rank
    Peer* peer;
    u8* base;
    const Layout* layout;

    Control& control() const { return *(Control*)base; }
    Call& call(u64 sequence) const { return control().calls[sequence % 2]; }
    Piece* pieces(u64 sequence, u32 ranks) const {
        return (Piece*)(base + layout->pieces) + sequence % 2 * ranks;
    }
    u64& taken(u32 source) const { return *(u64*)(base + layout->taken + source * LINE); }
    Outbox& outbox(u32 target) const { return ((Outbox*)(base + layout->outboxes))[target]; }
    u8* slot(u64 sequence) const { return base + layout->slots + sequence % 2 * SLOT_BYTES; }
    u8* stage(u64 chunk) const { return base + layout->stages + chunk % 2 * STAGE_BYTES; }
};

struct Failure {
    Status status;
    u32 rank;  // that is to blame
};
