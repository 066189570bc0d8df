// Operations as state machines that never wait: a step does what can be done now. Whoever waits for one steps
// all that are under way, so that a rank that waits for something still serves those that wait for it.
#pragma once
#include "group.h"

struct Group;

struct Operation {
    Group* group;
    Call call;
    const void* input;
    void* output;             // of a reduction; null where the rank gets no result
    void* const* outputs;     // of an exchange, by source
    const u64* output_bytes;  // of an exchange, by source: what the caller has room for
    const Piece* pieces;      // of an exchange, by destination
    i64 tag;                  // of a message
    u64 deadline;
    Status status = Status::RUNNING;
    u32 phase = 0;
    u64 chunk = 0;
    u64 number = 0;         // of a message that was sent and has to be taken
    i32 found_source = -1;  // of a message that was received
    Operation* next = nullptr;
};

// Operations under way, first in, first out.
struct Queue {
    Operation* head = nullptr;
    Operation** tail = &head;

    void push(Operation* operation) {
        *tail = operation;
        tail = &operation->next;
    }

    void remove(Operation** link) {
        Operation* operation = *link;
        *link = operation->next;
        if (tail == &operation->next) tail = link;
    }
};

struct Parcel {  // a copy of a message in the sender's memory, kept until it is taken
    u32 target;
    u64 number, offset;
    Parcel* next;
};

class Lock {
   public:
    void lock() {
        while (__atomic_exchange_n(&held_, 1u, __ATOMIC_ACQUIRE)) sched_yield();
    }
    void unlock() { __atomic_store_n(&held_, 0u, __ATOMIC_RELEASE); }

   private:
    u32 held_ = 0;
};

struct Engine {
    Peer self;
    Heap heap;
    u64 spins;  // looks at memory before a waiting thread sleeps
    Group* groups = nullptr;
    Group* left = nullptr;  // groups whose shares others may still read
    Lock lock;
    u64 copied = 0;  // bytes of operands that went through slots, stages and parcels

    Engine(Peer me, u64 look) : self(me), heap(HEADER_BYTES, me.bytes), spins(look) {}

    bool has(const void* p, u64 bytes) const {
        return (const u8*)p >= self.base + HEADER_BYTES && (const u8*)p + bytes <= self.base + self.bytes;
    }
    u64 offset_of(const void* p, u64 bytes) const {
        return has(p, bytes) ? u64((const u8*)p - self.base) : NOWHERE;
    }
};

struct Group {
    Engine* engine;
    u32 rank, ranks;
    Layout layout;
    Share* shares;
    u64 offset;  // of the own share in the own memory
    u64 sequence = 0;
    u64* taken_ahead;  // by source: bits of messages that were taken before earlier ones
    Failure failure{Status::RUNNING, 0};
    Queue collectives, messages;
    Parcel* parcels = nullptr;
    Group* next = nullptr;

    Share& mine() const { return shares[rank]; }
    bool has_failed() const { return failure.status != Status::RUNNING; }
};

// After a store that others may wait for.
inline void wake(const Peer& peer) {
    Header& header = peer.header();
    if (!__atomic_load_n(&header.sleepers, __ATOMIC_SEQ_CST)) return;
    __atomic_fetch_add(&header.doorbell, 1, __ATOMIC_SEQ_CST);
    futex_wake(&header.doorbell);
}

inline void wake_all(Group& group) {
    for (u32 q = 0; q < group.ranks; q++)
        if (q != group.rank) wake(*group.shares[q].peer);
}

inline void arrive(Group& group) {
    u64& arrived = group.mine().control().arrived;
    store(arrived, arrived + 1);
    wake_all(group);
}

inline bool has_arrived(const Group& group, u32 q) {
    return load(group.shares[q].control().arrived) >= group.mine().control().arrived;
}

inline bool have_all_arrived(const Group& group) {
    for (u32 k = 1; k < group.ranks; k++)
        if (!has_arrived(group, (group.rank + k) % group.ranks)) return false;
    return true;
}

inline void fail(Group& group, Status status, u32 blamed) {
    if (group.has_failed()) return;
    group.failure = {status, blamed};
    store(group.mine().control().failure, u64(status) << 32 | blamed);
    wake_all(group);
}

// Looks for what would make the group wait for ever.
inline void check_health(Group& group) {
    for (u32 q = 0; q < group.ranks && !group.has_failed(); q++) {
        if (q == group.rank) continue;
        u64 told = load(group.shares[q].control().failure);
        if (Status(told >> 32) == Status::PEER_DIED) fail(group, Status::PEER_DIED, u32(told));
        else if (told) fail(group, Status::ABORTED, q);
        PollFd process{group.shares[q].peer->process, POLL_IN, 0};
        if (process.fd >= 0 && poll(&process, 1, 0) > 0) fail(group, Status::PEER_DIED, q);
    }
}
