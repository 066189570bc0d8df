// The two families that every collective belongs to.
//
// A *reduction* gives elements of all operands, reduced, to all ranks (all-reduce), one (reduce) or each its
// part (reduce-scatter). An *exchange* gives each rank a piece of each operand: all-gather, all-to-all,
// broadcast, gather and scatter differ only in the pieces.
//
// Three ways, decided by what the calls say, which all ranks see alike:
//   slot    operands of at most SLOT_BYTES lie in the slots when the ranks meet: no second meeting
//   mapped  operands in the arena are read, and results of an all-reduce written, where they are
//   staged  others pass through stages, a chunk at a time
#pragma once
#include "engine.h"

constexpr u32 MAX_RANKS = 64;
constexpr u32 RANKS_THAT_SHARE_WORK = 4;  // from so many on, a staged chunk is not reduced by every rank

enum Phase : u32 { BEFORE, MET, LEAVING, CHUNK, CHUNK_REDUCED };

inline bool wants_result(const Operation& o) {
    return o.call.root < 0 || o.call.root == i32(o.group->rank);
}

inline u64 operand_bytes(const Call& call) {
    return call.count * bytes_of(call.dtype);
}

inline void copy_counted(Group& group, void* to, const void* from, u64 bytes) {
    memcpy(to, from, bytes);
    group.engine->copied += bytes;
}

inline const Piece& piece(const Operation& o, u32 from, u32 to) {
    return o.group->shares[from].pieces(o.call.sequence, o.group->ranks)[to];
}

// Bytes of a rank's operand that anybody gets.
inline u64 extent(const Operation& o, u32 from) {
    u64 end = 0;
    for (u32 to = 0; to < o.group->ranks; to++)
        end = max(end, piece(o, from, to).begin + piece(o, from, to).bytes);
    return end;
}

// Publish the call, and the operand if it is small; the way through a meeting begins.
inline void begin(Operation& o) {
    Group& group = *o.group;
    Share& mine = group.mine();
    o.call.sequence = ++group.sequence;
    mine.call(o.call.sequence) = o.call;
    u64 bytes = operand_bytes(o.call);
    if (o.call.kind == Kind::EXCHANGE) {
        memcpy(mine.pieces(o.call.sequence, group.ranks), o.pieces, group.ranks * sizeof(Piece));
        bytes = extent(o, group.rank);
    }
    if (bytes && bytes <= SLOT_BYTES) copy_counted(group, mine.slot(o.call.sequence), o.input, bytes);
    arrive(group);
}

inline bool is_same_call(const Call& a, const Call& b) {
    return a.sequence == b.sequence && a.name == b.name && a.dtype == b.dtype && a.op == b.op &&
           a.root == b.root && a.is_shared == b.is_shared && a.count == b.count && a.part == b.part;
}

inline bool are_all_mapped(const Operation& o) {
    for (u32 q = 0; q < o.group->ranks; q++)
        if (o.group->shares[q].call(o.call.sequence).offset == NOWHERE) return false;
    return true;
}

inline u8* mapped_operand(const Operation& o, u32 q) {
    Share& share = o.group->shares[q];
    return share.peer->base + share.call(o.call.sequence).offset;
}

// ---- reductions

struct Sources {
    const void* of[MAX_RANKS];
};

inline Sources slots(const Operation& o) {
    Sources sources;
    for (u32 q = 0; q < o.group->ranks; q++) sources.of[q] = o.group->shares[q].slot(o.call.sequence);
    return sources;
}

inline Sources stages(const Operation& o, u64 offset) {
    Sources sources;
    for (u32 q = 0; q < o.group->ranks; q++) sources.of[q] = o.group->shares[q].stage(o.chunk) + offset;
    return sources;
}

inline Sources mapped(const Operation& o, u64 offset) {
    Sources sources;
    for (u32 q = 0; q < o.group->ranks; q++) sources.of[q] = mapped_operand(o, q) + offset;
    return sources;
}

inline void reduce_to(const Operation& o, const Sources& from, void* to, u64 count) {
    reduce(o.call.dtype, o.call.op, {from.of, o.group->ranks, &to, 1}, 0, count);
}

// This rank's share of `count` elements, reduced, to everybody's copy in `places` or to the root's.
inline void reduce_share(const Operation& o, const Sources& places, u64 count) {
    Group& group = *o.group;
    u64 per = round_up(divide_up(count, group.ranks), LINE);
    u64 begin = min(per * group.rank, count), end = min(begin + per, count);
    auto targets = (void* const*)places.of;
    u32 root = u32(o.call.root), targets_count = o.call.root < 0 ? group.ranks : 1;
    reduce(o.call.dtype, o.call.op,
           {places.of, group.ranks, o.call.root < 0 ? targets : targets + root, targets_count}, begin, end);
}

// Elements of a chunk: of the whole operand, or of each part.
inline u64 chunk_elements(const Operation& o) {
    u64 room = o.call.part ? STAGE_BYTES / o.group->ranks / LINE * LINE : STAGE_BYTES;
    return room / bytes_of(o.call.dtype);
}

inline u64 staged_elements(const Operation& o) {
    return o.call.part ? o.call.part : o.call.count;
}

inline u64 elements_of_this_chunk(const Operation& o) {
    u64 per = chunk_elements(o);
    return min(per, staged_elements(o) - o.chunk * per);
}

inline void stage_operand(Operation& o) {
    u64 size = bytes_of(o.call.dtype), per = chunk_elements(o) * size,
        bytes = elements_of_this_chunk(o) * size;
    u8* stage = o.group->mine().stage(o.chunk);
    auto from = (const u8*)o.input + o.chunk * per;
    for (u32 q = 0; q < (o.call.part ? o.group->ranks : 1); q++)
        copy_counted(*o.group, stage + q * per, from + q * o.call.part * size, bytes);
}

inline bool is_work_shared(const Operation& o) {
    return o.call.root < 0 && !o.call.part && o.group->ranks >= RANKS_THAT_SHARE_WORK;
}

inline bool next_chunk(Operation& o) {
    if (++o.chunk * chunk_elements(o) >= staged_elements(o)) return true;
    stage_operand(o);
    o.phase = CHUNK;
    arrive(*o.group);
    return false;
}

inline void* chunk_of_output(const Operation& o) {
    return (u8*)o.output + o.chunk * chunk_elements(o) * bytes_of(o.call.dtype);
}

inline bool reduce_when_met(Operation& o) {
    Group& group = *o.group;
    u64 size = bytes_of(o.call.dtype), part = o.call.part;
    if (operand_bytes(o.call) <= SLOT_BYTES) {
        Sources from = slots(o);
        for (u32 q = 0; q < group.ranks; q++) from.of[q] = (const u8*)from.of[q] + group.rank * part * size;
        if (wants_result(o)) reduce_to(o, from, o.output, part ? part : o.call.count);
        return true;
    }
    if (!are_all_mapped(o)) {
        stage_operand(o);
        o.phase = CHUNK;
        arrive(group);
        return false;
    }
    if (part) reduce_to(o, mapped(o, group.rank * part * size), o.output, part);
    else reduce_share(o, mapped(o, 0), o.call.count);
    o.phase = LEAVING;
    arrive(group);
    return false;
}

inline bool reduce_chunk(Operation& o) {
    u64 count = elements_of_this_chunk(o);
    if (is_work_shared(o)) {
        reduce_share(o, stages(o, 0), count);
        o.phase = CHUNK_REDUCED;
        arrive(*o.group);
        return false;
    }
    u64 offset = o.call.part ? o.group->rank * chunk_elements(o) * bytes_of(o.call.dtype) : 0;
    if (wants_result(o)) reduce_to(o, stages(o, offset), chunk_of_output(o), count);
    return next_chunk(o);
}

inline bool advance_reduction(Operation& o) {
    switch (o.phase) {
        case MET: return reduce_when_met(o);
        case CHUNK: return reduce_chunk(o);
        case CHUNK_REDUCED:
            memcpy(chunk_of_output(o), o.group->mine().stage(o.chunk),
                   elements_of_this_chunk(o) * bytes_of(o.call.dtype));
            return next_chunk(o);
        default: return true;
    }
}

// ---- exchanges

inline u64 largest_piece(const Operation& o) {
    u64 largest = 0;
    for (u32 from = 0; from < o.group->ranks; from++)
        for (u32 to = 0; to < o.group->ranks; to++) largest = max(largest, piece(o, from, to).bytes);
    return largest;
}

// Bytes of each piece that a stage takes at once.
inline u64 chunk_of_pieces(const Operation& o) {
    return o.call.is_shared ? STAGE_BYTES : STAGE_BYTES / o.group->ranks / LINE * LINE;
}

inline u64 bytes_of_this_chunk(const Operation& o, const Piece& of) {
    u64 per = chunk_of_pieces(o), done = o.chunk * per;
    return of.bytes > done ? min(per, of.bytes - done) : 0;
}

inline void stage_pieces(Operation& o) {
    Group& group = *o.group;
    u8* stage = group.mine().stage(o.chunk);
    u64 per = chunk_of_pieces(o);
    for (u32 k = 0; k < group.ranks; k++) {
        const Piece& of = piece(o, group.rank, k);
        u64 bytes = bytes_of_this_chunk(o, of);
        u8* place = stage + (o.call.is_shared ? 0 : k * per);
        if (bytes) copy_counted(group, place, (const u8*)o.input + of.begin + o.chunk * per, bytes);
        if (bytes && o.call.is_shared) return;
    }
}

inline void take_staged_pieces(Operation& o) {
    Group& group = *o.group;
    u64 per = chunk_of_pieces(o);
    for (u32 q = 0; q < group.ranks; q++) {
        u64 bytes = bytes_of_this_chunk(o, piece(o, q, group.rank));
        if (bytes)
            memcpy((u8*)o.outputs[q] + o.chunk * per,
                   group.shares[q].stage(o.chunk) + (o.call.is_shared ? 0 : group.rank * per), bytes);
    }
}

inline bool have_pieces_room(Operation& o) {
    for (u32 q = 0; q < o.group->ranks; q++)
        if (piece(o, q, o.group->rank).bytes != o.output_bytes[q]) {
            fail(*o.group, Status::MISMATCH, q);
            return false;
        }
    return true;
}

inline bool are_all_in_slots(const Operation& o) {
    for (u32 q = 0; q < o.group->ranks; q++)
        if (extent(o, q) > SLOT_BYTES) return false;
    return true;
}

inline void take_pieces(Operation& o, const Sources& from) {
    Group& group = *o.group;
    for (u32 k = 0; k < group.ranks; k++) {
        u32 q = (group.rank + k) % group.ranks;
        const Piece& of = piece(o, q, group.rank);
        auto begin = (const u8*)from.of[q] + of.begin;
        if (of.bytes && begin != o.outputs[q]) memcpy(o.outputs[q], begin, of.bytes);
    }
}

inline bool exchange_when_met(Operation& o) {
    Group& group = *o.group;
    if (!have_pieces_room(o)) return true;
    if (are_all_in_slots(o)) {
        take_pieces(o, slots(o));
        return true;
    }
    bool is_mapped = are_all_mapped(o);
    if (is_mapped) {
        take_pieces(o, mapped(o, 0));
    } else {
        stage_pieces(o);
    }
    o.phase = is_mapped ? LEAVING : CHUNK;
    arrive(group);
    return false;
}

inline bool advance_exchange(Operation& o) {
    if (o.phase == MET) return exchange_when_met(o);
    if (o.phase == LEAVING) return true;
    take_staged_pieces(o);
    if (++o.chunk * chunk_of_pieces(o) >= largest_piece(o)) return true;
    stage_pieces(o);
    arrive(*o.group);
    return false;
}

// ---- all of them

// Whether everybody called the same, and nobody has given up waiting for us.
inline bool compare_calls(Operation& o) {
    Group& group = *o.group;
    for (u32 q = 0; q < group.ranks; q++)
        if (!is_same_call(o.call, group.shares[q].call(o.call.sequence))) fail(group, Status::MISMATCH, q);
    for (u32 q = 0; q < group.ranks; q++)
        if (q != group.rank && load(group.shares[q].control().failure)) fail(group, Status::ABORTED, q);
    return !group.has_failed();
}

inline bool advance(Operation& o) {
    if (o.call.kind == Kind::BARRIER) return true;
    return o.call.kind == Kind::REDUCE ? advance_reduction(o) : advance_exchange(o);
}

// Do what can be done now; whether the collective is over, well or not.
inline bool step_collective(Operation& o) {
    if (o.phase == BEFORE) {
        begin(o);
        o.phase = MET;
    }
    while (!o.group->has_failed() && have_all_arrived(*o.group)) {
        if (o.phase == MET && !compare_calls(o)) return true;
        if (advance(o)) return true;
    }
    return o.group->has_failed();
}
