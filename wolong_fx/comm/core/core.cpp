// The core of collectives behind its C interface.
#include "collectives.h"
#include "interface.h"
#include "messages.h"

static_assert(sizeof(Operation) <= OPERATION_BYTES && MAX_RANKS == MOST_RANKS);

namespace {

constexpr i64 LONGEST_SLEEP = 2'000'000;  // nanoseconds; a death is seen that late at most
constexpr u64 LOOKS_BEFORE_HEALTH = 4096;

bool is_in_child = false;

void finish(Operation& o) {
    Status failed = o.group->failure.status;
    if (o.status == Status::RUNNING) o.status = failed == Status::RUNNING ? Status::DONE : failed;
}

// Everything of a group that can be done now. Collectives run one after another, messages side by side.
void progress(Group& group) {
    while (Operation* o = group.collectives.head) {
        if (!step_collective(*o)) break;
        group.collectives.remove(&group.collectives.head);
        finish(*o);
    }
    for (Operation** link = &group.messages.head; *link;) {
        Operation* o = *link;
        if (!step_message(*o)) {
            link = &o->next;
            continue;
        }
        group.messages.remove(link);
        finish(*o);
    }
}

void progress_all(Engine& engine) {
    for (Group* group = engine.groups; group; group = group->next) progress(*group);
}

// What could keep an operation waiting for ever: a death, another's failure, too much time.
void check_operation(Operation& o, u64 now) {
    check_health(*o.group);
    if (o.group->has_failed() || now < o.deadline) return;
    u32 late = o.group->rank;
    for (u32 q = 0; q < o.group->ranks; q++)
        if (q != o.group->rank && !has_arrived(*o.group, q)) late = q;
    fail(*o.group, Status::TIMED_OUT, o.call.kind >= Kind::SEND ? u32(o.call.root) : late);
}

bool step_all(Operation& o, bool with_health) {
    Engine& engine = *o.group->engine;
    engine.lock.lock();
    progress_all(engine);
    if (with_health && o.status == Status::RUNNING) {
        check_operation(o, nanoseconds_now());
        progress_all(engine);
    }
    bool is_over = load(o.status) != Status::RUNNING;
    engine.lock.unlock();
    return is_over;
}

// Until somebody who has news rings, or a moment has passed.
void sleep_until_woken(Operation& o) {
    Header& header = o.group->engine->self.header();
    __atomic_fetch_add(&header.sleepers, 1, __ATOMIC_SEQ_CST);
    u32 bell = __atomic_load_n(&header.doorbell, __ATOMIC_SEQ_CST);
    if (!step_all(o, true)) futex_wait(&header.doorbell, bell, LONGEST_SLEEP);
    __atomic_fetch_sub(&header.sleepers, 1, __ATOMIC_SEQ_CST);
}

Group** link_of(Group* group) {
    Group** link = &group->engine->groups;
    while (*link != group) link = &(*link)->next;
    return link;
}

bool have_all_left(const Group& group) {
    for (u32 q = 0; q < group.ranks; q++)
        if (!load(group.shares[q].control().has_left)) return false;
    return true;
}

void destroy(Group* group) {
    while (Parcel* parcel = group->parcels) {
        group->engine->heap.release(parcel->offset);
        group->parcels = parcel->next;
        free(parcel);
    }
    group->engine->heap.release(group->offset);
    free(group->shares[0].peer);
    free(group->shares);
    free(group->taken_ahead);
    free(group);
}

// Give back the shares of groups that all ranks have left; until then somebody may wait for what they say.
void sweep_left_groups(Engine& engine) {
    for (Group** link = &engine.left; *link;) {
        Group* group = *link;
        if (!have_all_left(*group)) {
            link = &group->next;
            continue;
        }
        *link = group->next;
        destroy(group);
    }
}

}  // namespace

extern "C" {

void* wolong_map(i32 file, u64 bytes) {
    void* memory = mmap(nullptr, bytes, READ_AND_WRITE, SHARED_WITHOUT_RESERVE, file, 0);
    return memory == (void*)-1 ? nullptr : memory;
}

Engine* wolong_open(void* memory, u64 bytes, u64 spins) {
    pthread_atfork(nullptr, nullptr, [] { is_in_child = true; });
    return new (malloc(sizeof(Engine))) Engine({(u8*)memory, bytes, -1}, spins);
}

void wolong_set_spins(Engine* engine, u64 spins) {
    engine->spins = spins;
}

void wolong_close(Engine* engine) {
    while (Group* group = engine->left) {
        engine->left = group->next;
        destroy(group);
    }
    engine->~Engine();
    free(engine);
}

u64 wolong_allocate(Engine* engine, u64 bytes) {
    engine->lock.lock();
    u64 offset = engine->heap.allocate(bytes);
    engine->lock.unlock();
    return offset;
}

void wolong_release(Engine* engine, u64 offset) {
    engine->lock.lock();
    engine->heap.release(offset);
    engine->lock.unlock();
}

u64 wolong_used(const Engine* engine) {
    return engine->heap.used();
}
u64 wolong_peak(const Engine* engine) {
    return engine->heap.peak();
}
u64 wolong_copied(const Engine* engine) {
    return engine->copied;
}
bool wolong_has(const Engine* engine, const void* p, u64 bytes) {
    return engine->has(p, bytes);
}

u64 wolong_prepare_share(Engine* engine, u32 ranks) {
    u64 bytes = Layout(ranks).bytes, offset = wolong_allocate(engine, bytes);
    if (offset != NOWHERE) memset(engine->self.base + offset, 0, bytes);
    return offset;
}

Group* wolong_join(Engine* engine, u32 rank, u32 ranks, void* const* bases, const u64* sizes,
                   const i32* processes, const u64* offsets) {
    auto group =
        new (malloc(sizeof(Group))) Group{engine, rank, ranks, Layout(ranks), nullptr, offsets[rank]};
    group->shares = (Share*)malloc(ranks * sizeof(Share));
    group->taken_ahead = (u64*)malloc(ranks * sizeof(u64));
    auto peers = (Peer*)malloc(ranks * sizeof(Peer));
    for (u32 q = 0; q < ranks; q++) {
        peers[q] = {(u8*)bases[q], sizes[q], processes[q]};
        group->shares[q] = {&peers[q], (u8*)bases[q] + offsets[q], &group->layout};
        group->taken_ahead[q] = 0;
    }
    engine->lock.lock();
    sweep_left_groups(*engine);
    group->next = engine->groups;
    engine->groups = group;
    engine->lock.unlock();
    return group;
}

void wolong_leave(Group* group) {
    Engine& engine = *group->engine;
    engine.lock.lock();
    *link_of(group) = group->next;
    group->next = engine.left;
    engine.left = group;
    store(group->mine().control().has_left, 1ul);
    sweep_left_groups(engine);
    engine.lock.unlock();
}

static void start(Operation* o, Group* group, u64 timeout) {
    o->group = group;
    o->deadline = timeout > ~0ul - nanoseconds_now() ? ~0ul : nanoseconds_now() + timeout;
    if (is_in_child) {
        o->status = Status::FORKED;
        return;
    }
    group->engine->lock.lock();
    (o->call.kind >= Kind::SEND ? group->messages : group->collectives).push(o);
    progress(*group);
    group->engine->lock.unlock();
}

void wolong_barrier(Operation* o, Group* group, u32 name, u64 timeout) {
    new (o) Operation{};
    o->call = {0, name, Kind::BARRIER, DType::U8, ReduceOp::SUM, -1, 0, 0, 0, 0};
    start(o, group, timeout);
}

void wolong_reduce(Operation* o, Group* group, u32 name, u32 dtype, u32 op, i32 root, u64 count, u64 part,
                   const void* input, void* output, u64 timeout) {
    new (o) Operation{};
    bool is_in_place = part || input == output || (root >= 0 && u32(root) != group->rank);
    u64 offset = is_in_place ? group->engine->offset_of(input, count * bytes_of(DType(dtype))) : NOWHERE;
    o->call = {0, name, Kind::REDUCE, DType(dtype), ReduceOp(op), root, 0, count, part, offset};
    o->input = input;
    o->output = output;
    start(o, group, timeout);
}

void wolong_exchange(Operation* o, Group* group, u32 name, i32 root, bool is_shared, const void* input,
                     u64 bytes, const Piece* pieces, void* const* outputs, const u64* output_bytes,
                     u64 timeout) {
    new (o) Operation{};
    u64 offset = bytes ? group->engine->offset_of(input, bytes) : 0;
    o->call = {0, name, Kind::EXCHANGE, DType::U8, ReduceOp::SUM, root, is_shared, 0, 0, offset};
    o->input = input;
    o->pieces = pieces;
    o->outputs = outputs;
    o->output_bytes = output_bytes;
    start(o, group, timeout);
}

void wolong_send(Operation* o, Group* group, u32 name, u32 target, i64 tag, const void* input, u64 bytes,
                 u64 timeout) {
    new (o) Operation{};
    u64 offset = group->engine->offset_of(input, bytes);
    o->call = {0, name, Kind::SEND, DType::U8, ReduceOp::SUM, i32(target), 0, bytes, 0, offset};
    o->input = input;
    o->tag = tag;
    start(o, group, timeout);
}

void wolong_receive(Operation* o, Group* group, u32 name, i32 source, i64 tag, void* output, u64 bytes,
                    u64 timeout) {
    new (o) Operation{};
    o->call = {0, name, Kind::RECEIVE, DType::U8, ReduceOp::SUM, source, 0, bytes, 0, NOWHERE};
    o->output = output;
    o->tag = tag;
    start(o, group, timeout);
}

i32 wolong_test(Operation* o) {
    if (load(o->status) == Status::RUNNING) step_all(*o, true);
    return i32(load(o->status));
}

i32 wolong_wait(Operation* o) {
    Engine& engine = *o->group->engine;
    for (u64 look = 0; load(o->status) == Status::RUNNING; look++) {
        if (look < engine.spins) {
            step_all(*o, look % LOOKS_BEFORE_HEALTH == LOOKS_BEFORE_HEALTH - 1);
            pause_briefly();
        } else {
            sleep_until_woken(*o);
        }
    }
    return i32(o->status);
}

i32 wolong_source(const Operation* o) {
    return o->found_source;
}
u64 wolong_sequence(const Operation* o) {
    return o->call.kind >= Kind::SEND ? 0 : o->call.sequence;
}
u32 wolong_blamed(const Group* group) {
    return group->failure.rank;
}
u64 wolong_calls(const Group* group) {
    return group->sequence;
}

void wolong_call_of(const Group* group, u32 q, u64 sequence, PublishedCall* found) {
    const Call& call = group->shares[q].call(sequence);
    *found = {call.sequence, call.name, u32(call.dtype), u32(call.op), call.root, call.count};
}

void wolong_abort(Group* group) {
    group->engine->lock.lock();
    fail(*group, Status::ABORTED, group->rank);
    progress(*group);
    group->engine->lock.unlock();
}

void wolong_tell_site(Group* group, const char* text) {
    Control& control = group->mine().control();
    snprintf(control.site, SITE_BYTES, "%s", text);
    store(control.has_site, 1ul);
}

const char* wolong_site_of(const Group* group, u32 q) {
    const Control& control = group->shares[q].control();
    return load(control.has_site) ? control.site : nullptr;
}
}
