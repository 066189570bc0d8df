// The C interface of the core. Sizes and offsets are bytes, times nanoseconds; a rank is a number in its
// group.
#pragma once

struct Engine;     // of a process: its memory, the groups it is in, what is under way
struct Group;      // one rank's part in it
struct Operation;  // under way, or over
struct Piece;      // of an operand, for one destination: two u64, where it begins and its bytes

constexpr unsigned long OPERATION_BYTES = 256;
constexpr unsigned MOST_RANKS = 64;

struct PublishedCall {
    unsigned long sequence;
    unsigned name, dtype, op;
    int root;
    unsigned long count;
};

extern "C" {
// Map a file that processes share, for as long as this one lives: operations may outlast whoever started
// them.
void* wolong_map(int file, unsigned long bytes);  // null when the system refuses

// memory: zero, mapped by all peers; spins: looks at it before a thread that waits sleeps
Engine* wolong_open(void* memory, unsigned long bytes, unsigned long spins);
void wolong_set_spins(Engine*, unsigned long spins);
void wolong_close(Engine*);  // after all its groups were left, by everybody

// Parts of the memory by their offset; ~0 where there is no room.
unsigned long wolong_allocate(Engine*, unsigned long bytes);
void wolong_release(Engine*, unsigned long offset);
bool wolong_has(const Engine*, const void*, unsigned long bytes);
unsigned long wolong_used(const Engine*);
unsigned long wolong_peak(const Engine*);
unsigned long wolong_copied(const Engine*);  // bytes of operands that were not taken from where they are

// By rank: everybody's memory as mapped here, pidfds (-1: none), and where their shares lie in it.
// Each rank prepares its own share, before it tells where, and gives up the part by leaving.
unsigned long wolong_prepare_share(Engine*, unsigned ranks);
Group* wolong_join(Engine*, unsigned rank, unsigned ranks, void* const* bases, const unsigned long* sizes,
                   const int* processes, const unsigned long* offsets);
void wolong_leave(Group*);  // nothing may be under way
void wolong_abort(Group*);  // everything under way fails, on all ranks

// Start an operation in OPERATION_BYTES of memory. It stays there until it is over, and so does what it
// points to. `name` says what users call it; all ranks of a collective must agree on it.
void wolong_barrier(Operation*, Group*, unsigned name, unsigned long timeout);
// part: of the `count` elements, for each rank; 0: every rank, or the root, gets all. output: null for no
// result
void wolong_reduce(Operation*, Group*, unsigned name, unsigned dtype, unsigned op, int root,
                   unsigned long count, unsigned long part, const void* input, void* output,
                   unsigned long timeout);
// pieces by destination; outputs and their sizes by source; is_shared: whether all destinations get the same
// piece
void wolong_exchange(Operation*, Group*, unsigned name, int root, bool is_shared, const void* input,
                     unsigned long bytes, const Piece* pieces, void* const* outputs,
                     const unsigned long* output_bytes, unsigned long timeout);
void wolong_send(Operation*, Group*, unsigned name, unsigned target, long tag, const void* input,
                 unsigned long bytes, unsigned long timeout);
// source: -1 for whoever sends
void wolong_receive(Operation*, Group*, unsigned name, int source, long tag, void* output,
                    unsigned long bytes, unsigned long timeout);

// A status of group.h: 0 while it runs, 1 when it is done. Only `wait` waits; both serve all that is under
// way.
int wolong_test(Operation*);
int wolong_wait(Operation*);

int wolong_source(const Operation*);              // of a message
unsigned long wolong_sequence(const Operation*);  // of a collective in its group
unsigned wolong_blamed(const Group*);             // the rank that a failure is due to
unsigned long wolong_calls(const Group*);         // collectives that were begun
void wolong_call_of(const Group*, unsigned rank, unsigned long sequence, PublishedCall*);

// For calls that do not match: where each rank's program made its own. Null until that rank has told.
void wolong_tell_site(Group*, const char*);
const char* wolong_site_of(const Group*, unsigned rank);
}
