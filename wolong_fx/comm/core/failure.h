// What went wrong with an operation, in words: the operation, its number, the rank that is to blame.
#pragma once
#include <pybind11/pybind11.h>
#include <time.h>

#include <string>

#include "interface.h"

namespace wolong {

enum Status { RUNNING, DONE, TIMED_OUT, PEER_DIED, ABORTED, MISMATCH, NO_MEMORY, FORKED };

constexpr const char* DTYPES[] = {"float32", "float64", "float16", "bfloat16", "int8",
                                  "int16",   "int32",   "int64",   "uint8",    "bool"};
constexpr const char* REDUCTIONS[] = {"sum", "avg", "product", "min", "max"};

// By their number, in the order of `Name`.
constexpr const char* NAMES[] = {"barrier",    "all_reduce", "reduce", "reduce_scatter",
                                 "all_gather", "broadcast",  "gather", "scatter",
                                 "all_to_all", "send",       "recv"};
enum Name : unsigned {
    BARRIER,
    ALL_REDUCE,
    REDUCE,
    REDUCE_SCATTER,
    ALL_GATHER,
    BROADCAST,
    GATHER,
    SCATTER,
    ALL_TO_ALL,
    SEND,
    RECV
};

// Where the user's program is now, if this thread runs Python.
inline std::string user_site() {
    pybind11::gil_scoped_acquire gil;
    try {
        return pybind11::module_::import("wolong_fx.comm.call_site")
            .attr("user_call_site")()
            .cast<std::string>();
    } catch (const std::exception&) {
        return "unknown";
    }
}

inline std::string site_of(const Group* group, unsigned rank) {
    for (int tenths = 0; tenths < 10; tenths++) {
        if (const char* site = wolong_site_of(group, rank)) return site;
        timespec moment{0, 100'000'000};
        nanosleep(&moment, nullptr);
    }
    return "a place it did not tell";
}

inline std::string describe(const PublishedCall& call) {
    std::string text = NAMES[call.name];
    if (call.count) text += " of " + std::to_string(call.count) + " " + DTYPES[call.dtype];
    if (call.name >= ALL_REDUCE && call.name <= REDUCE_SCATTER)
        text += std::string(" (") + REDUCTIONS[call.op] + ")";
    return call.root < 0 ? text : text + " with root " + std::to_string(call.root);
}

// Call sites are exchanged on the way: a moment is waited for the other rank's.
inline std::string describe_mismatch(Group* group, unsigned rank, unsigned blamed, unsigned long sequence) {
    PublishedCall mine, other;
    wolong_tell_site(group, user_site().c_str());
    wolong_call_of(group, rank, sequence, &mine);
    wolong_call_of(group, blamed, sequence, &other);
    auto side = [&](unsigned q, const PublishedCall& call) {
        return "rank " + std::to_string(q) + " called " + describe(call) + " at " + site_of(group, q);
    };
    return "the ranks do not call the same: " + side(rank, mine) + ", " + side(blamed, other) +
           "; sizes per rank must agree too";
}

inline std::string describe_failure(Group* group, unsigned rank, int status, unsigned name,
                                    unsigned long sequence, double seconds) {
    unsigned blamed = wolong_blamed(group);
    std::string who = "rank " + std::to_string(blamed);
    switch (status) {
        case TIMED_OUT: return "waited " + std::to_string(int(seconds)) + " s for " + who;
        case PEER_DIED: return "the process of " + who + " ended";
        case ABORTED: return blamed == rank ? "the group was aborted" : who + " gave up";
        case MISMATCH:
            return name >= SEND ? who + " sent a message of another size"
                                : describe_mismatch(group, rank, blamed, sequence);
        case NO_MEMORY:
            return "the arena has no room for a copy of the message; set WOLONG_COMM_ARENA_MB higher";
        case FORKED:
            return "this process was forked from one that had joined the group; start it anew (spawn)";
        default: return "status " + std::to_string(status);
    }
}

}  // namespace wolong
