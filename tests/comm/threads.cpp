// Ranks as threads of one process, for ThreadSanitizer: the same core, each rank with an engine of its own.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "interface.h"

namespace {

constexpr unsigned long MEMORY = 64ul << 20, FOREVER = 60'000'000'000;
constexpr unsigned RANKS = 3;

struct Rank {
    char* memory;
    Engine* engine;
    unsigned long share;
    Group* group;
    alignas(16) char storage[OPERATION_BYTES];

    Operation* operation() { return reinterpret_cast<Operation*>(storage); }
};

void require(bool is_true, const char* what) {
    if (is_true) return;
    std::printf("%s\n", what);
    std::exit(1);
}

float* floats(Rank& rank, unsigned long count, bool in_arena) {
    if (!in_arena) return static_cast<float*>(std::malloc(4 * count));
    unsigned long offset = wolong_allocate(rank.engine, 4 * count);
    require(offset != ~0ul, "no room");
    return reinterpret_cast<float*>(rank.memory + offset);
}

void all_reduce(Rank& rank, unsigned r, unsigned long count, bool in_arena) {
    float* mine = floats(rank, count, in_arena);
    for (unsigned long i = 0; i < count; i++) mine[i] = float(r + i % 7);
    wolong_reduce(rank.operation(), rank.group, 1, 0, 0, -1, count, 0, mine, mine, FOREVER);
    require(wolong_wait(rank.operation()) == 1, "all-reduce failed");
    for (unsigned long i = 0; i < count; i++)
        require(mine[i] == float(RANKS * (RANKS - 1) / 2 + RANKS * (i % 7)), "all-reduce is wrong");
    if (in_arena) wolong_release(rank.engine, reinterpret_cast<char*>(mine) - rank.memory);
    else std::free(mine);
}

void all_gather(Rank& rank, unsigned r, unsigned long count, bool in_arena) {
    float* mine = floats(rank, count, in_arena);
    for (unsigned long i = 0; i < count; i++) mine[i] = float(r);
    std::vector<float> found(RANKS * count);
    std::vector<unsigned long> pieces, sizes(RANKS, 4 * count);
    std::vector<void*> outputs;
    for (unsigned q = 0; q < RANKS; q++) {
        pieces.insert(pieces.end(), {0, 4 * count});
        outputs.push_back(&found[q * count]);
    }
    wolong_exchange(rank.operation(), rank.group, 4, -1, true, mine, 4 * count,
                    reinterpret_cast<const Piece*>(pieces.data()), outputs.data(), sizes.data(), FOREVER);
    require(wolong_wait(rank.operation()) == 1, "all-gather failed");
    for (unsigned long i = 0; i < RANKS * count; i++)
        require(found[i] == float(i / count), "all-gather is wrong");
    if (in_arena) wolong_release(rank.engine, reinterpret_cast<char*>(mine) - rank.memory);
    else std::free(mine);
}

void pass_on(Rank& rank, unsigned r, unsigned long count) {
    std::vector<float> mine(count, float(r)), found(count);
    wolong_send(rank.operation(), rank.group, 9, (r + 1) % RANKS, 5, mine.data(), 4 * count, FOREVER);
    require(wolong_wait(rank.operation()) == 1, "send failed");
    unsigned before = (r + RANKS - 1) % RANKS;
    wolong_receive(rank.operation(), rank.group, 10, int(before), 5, found.data(), 4 * count, FOREVER);
    require(wolong_wait(rank.operation()) == 1, "receive failed");
    for (float value : found) require(value == float(before), "message is wrong");
}

void run(std::vector<Rank>& ranks, unsigned r) {
    Rank& rank = ranks[r];
    for (int round = 0; round < 40; round++)
        for (unsigned long count : {1ul, 1000ul, 20'000ul, 200'000ul}) {
            if (count == 200'000 && round % 10) continue;
            // Some ranks' operands may be in the arena when others' are not.
            all_reduce(rank, r, count, (round + r * (round % 3)) % 2);
            all_gather(rank, r, count, (round + r * (round % 3)) % 2);
            pass_on(rank, r, count);
        }
}

}  // namespace

int main() {
    std::vector<Rank> ranks(RANKS);
    std::vector<void*> bases;
    std::vector<unsigned long> sizes(RANKS, MEMORY), offsets;
    std::vector<int> processes(RANKS, -1);
    for (Rank& rank : ranks) {
        rank.memory = static_cast<char*>(std::aligned_alloc(4096, MEMORY));
        std::memset(rank.memory, 0, MEMORY);
        rank.engine = wolong_open(rank.memory, MEMORY, 200);
        rank.share = wolong_prepare_share(rank.engine, RANKS);
        bases.push_back(rank.memory);
        offsets.push_back(rank.share);
    }
    for (unsigned r = 0; r < RANKS; r++)
        ranks[r].group = wolong_join(ranks[r].engine, r, RANKS, bases.data(), sizes.data(), processes.data(),
                                     offsets.data());
    std::vector<std::thread> threads;
    for (unsigned r = 0; r < RANKS; r++) threads.emplace_back(run, std::ref(ranks), r);
    for (auto& thread : threads) thread.join();
    for (Rank& rank : ranks) wolong_leave(rank.group);
    for (Rank& rank : ranks) {
        wolong_close(rank.engine);
        std::free(rank.memory);
    }
    std::printf("done\n");
}
