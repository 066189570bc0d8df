// Messages from one rank to another. The sender writes the message's place into its outbox for the receiver;
// the receiver copies it from the sender's memory and counts it as taken. A large message that lies in the
// arena is sent from where it is, and the send is over when it is taken; others are copied first, so that two
// ranks may send to each other before either receives.
#pragma once
#include "engine.h"

constexpr u64 WORTH_NO_COPY = 64 << 10;

inline u64 taken_by(const Group& group, u32 target) {
    return load(group.shares[target].taken(group.rank));
}

// Give back the copies that were taken.
inline void sweep_parcels(Group& group) {
    for (Parcel** link = &group.parcels; *link;) {
        Parcel* parcel = *link;
        if (taken_by(group, parcel->target) < parcel->number) {
            link = &parcel->next;
            continue;
        }
        group.engine->heap.release(parcel->offset);
        *link = parcel->next;
        free(parcel);
    }
}

inline u64 copy_into_parcel(Operation& o, u32 target, u64 number) {
    Group& group = *o.group;
    u64 offset = group.engine->heap.allocate(o.call.count);
    if (offset == NOWHERE) return NOWHERE;
    if (o.call.count) memcpy(group.engine->self.base + offset, o.input, o.call.count);
    group.engine->copied += o.call.count;
    group.parcels = new (malloc(sizeof(Parcel))) Parcel{target, number, offset, group.parcels};
    return offset;
}

inline bool step_send(Operation& o) {
    Group& group = *o.group;
    u32 target = u32(o.call.root);
    if (o.number) return taken_by(group, target) >= o.number;
    Outbox& box = group.mine().outbox(target);
    sweep_parcels(group);
    if (box.sent - taken_by(group, target) == RING) return false;
    u64 number = box.sent + 1, offset = o.call.offset;
    bool is_mapped = offset != NOWHERE && o.call.count >= WORTH_NO_COPY;
    if (!is_mapped) offset = copy_into_parcel(o, target, number);
    if (offset == NOWHERE) {
        o.status = Status::NO_MEMORY;
        return true;
    }
    box.ring[number % RING] = {o.tag, offset, o.call.count};
    store(box.sent, number);
    wake(*group.shares[target].peer);
    if (is_mapped) o.number = number;
    return !is_mapped;
}

// Counts a message as taken, and all before it that were taken out of their order.
inline void take(Group& group, u32 source, u64 number) {
    u64& taken = group.mine().taken(source);
    u64& ahead = group.taken_ahead[source];
    ahead |= 1ul << (number - taken - 1);
    u64 done = taken;
    for (; ahead & 1; ahead >>= 1) done++;
    store(taken, done);
    wake(*group.shares[source].peer);
}

inline bool receive_from(Operation& o, u32 source) {
    Group& group = *o.group;
    Outbox& box = group.shares[source].outbox(group.rank);
    u64 taken = group.mine().taken(source), sent = load(box.sent);
    for (u64 number = taken + 1; number <= sent; number++) {
        const Message& message = box.ring[number % RING];
        if (group.taken_ahead[source] >> (number - taken - 1) & 1 || message.tag != o.tag) continue;
        o.found_source = i32(source);
        if (message.bytes != o.call.count) {
            fail(group, Status::MISMATCH, source);
            return true;
        }
        if (message.bytes) memcpy(o.output, group.shares[source].peer->base + message.offset, message.bytes);
        take(group, source, number);
        return true;
    }
    return false;
}

inline bool step_receive(Operation& o) {
    if (o.call.root >= 0) return receive_from(o, u32(o.call.root));
    for (u32 q = 0; q < o.group->ranks; q++)
        if (q != o.group->rank && receive_from(o, q)) return true;
    return false;
}

// Whether the message is through, well or not.
inline bool step_message(Operation& o) {
    return o.group->has_failed() || (o.call.kind == Kind::SEND ? step_send(o) : step_receive(o));
}
