// First-fit allocation of a range of bytes by somebody who keeps the books elsewhere: what is in the range is
// never touched, because other processes read and write there.
#pragma once
#include "system.h"

constexpr u64 NOWHERE = ~0ul;

class Heap {
   public:
    Heap(u64 begin, u64 end) : first_(make(begin, end - begin, nullptr)) {}
    Heap(const Heap&) = delete;

    ~Heap() {
        for (Block* block = first_; block;) {
            Block* next = block->next;
            ::free(block);
            block = next;
        }
    }

    // Where `bytes` are free now, at a multiple of a page; NOWHERE if they are not.
    u64 allocate(u64 bytes) {
        bytes = round_up(max(bytes, 1ul), PAGE);
        for (Block* block = first_; block; block = block->next) {
            if (block->is_used || block->bytes < bytes) continue;
            if (block->bytes > bytes)
                block->next = make(block->offset + bytes, block->bytes - bytes, block->next);
            block->bytes = bytes;
            block->is_used = true;
            used_ += bytes;
            peak_ = max(peak_, used_);
            return block->offset;
        }
        return NOWHERE;
    }

    void release(u64 offset) {
        Block* before = nullptr;
        Block* block = first_;
        for (; block && block->offset != offset; block = block->next) before = block;
        if (!block || !block->is_used) return;
        block->is_used = false;
        used_ -= block->bytes;
        merge_with_next(block);
        if (before && !before->is_used) merge_with_next(before);
    }

    u64 used() const { return used_; }
    u64 peak() const { return peak_; }

   private:
    static constexpr u64 PAGE = 4096;

    struct Block {
        u64 offset, bytes;
        bool is_used;
        Block* next;
    };

    static Block* make(u64 offset, u64 bytes, Block* next) {
        return new (malloc(sizeof(Block))) Block{offset, bytes, false, next};
    }

    static void merge_with_next(Block* block) {
        Block* next = block->next;
        if (!next || next->is_used) return;
        block->bytes += next->bytes;
        block->next = next->next;
        ::free(next);
    }

    Block* first_;
    u64 used_ = 0, peak_ = 0;
};
