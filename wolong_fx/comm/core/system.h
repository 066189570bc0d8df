// What the core asks of the system, declared by hand: without headers it compiles in a second.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long;
using i8 = signed char;
using i16 = short;
using i32 = int;
using i64 = long;

struct Timespec {
    i64 seconds, nanoseconds;
};

struct PollFd {
    int fd;
    short events, happened;
};

extern "C" {
long syscall(long number, ...) noexcept;
int clock_gettime(int clock, Timespec* time) noexcept;
int poll(PollFd* fds, u64 count, int milliseconds);
int sched_yield() noexcept;
void* mmap(void* address, u64 bytes, int access, int flags, int file, i64 offset) noexcept;
int pthread_atfork(void (*before)(), void (*in_parent)(), void (*in_child)()) noexcept;
int snprintf(char* text, u64 size, const char* format, ...) noexcept;
void* malloc(u64 bytes) noexcept;
void free(void* memory) noexcept;
void* memcpy(void* to, const void* from, u64 bytes) noexcept;
void* memset(void* memory, int value, u64 bytes) noexcept;
}

inline void* operator new(u64, void* place) noexcept {
    return place;
}

#if defined(__x86_64__)
constexpr long SYS_FUTEX = 202;
#elif defined(__aarch64__)
constexpr long SYS_FUTEX = 98;
#endif
constexpr int CLOCK_MONOTONIC_ID = 1;
constexpr short POLL_IN = 1;
constexpr int READ_AND_WRITE = 3;
constexpr int SHARED_WITHOUT_RESERVE = 0x4001;

inline u64 nanoseconds_now() {
    Timespec t;
    clock_gettime(CLOCK_MONOTONIC_ID, &t);
    return u64(t.seconds) * 1'000'000'000 + u64(t.nanoseconds);
}

inline void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    asm volatile("yield");
#endif
}

// Futexes of memory that several processes map: hence no FUTEX_PRIVATE_FLAG.
inline void futex_wait(u32* word, u32 expected, i64 nanoseconds) {
    Timespec limit{0, nanoseconds};
    syscall(SYS_FUTEX, word, 0, expected, &limit, nullptr, 0);
}

inline void futex_wake(u32* word) {
    syscall(SYS_FUTEX, word, 1, 0x7fffffff, nullptr, nullptr, 0);
}

template <class T>
T load(const T& place) {
    return __atomic_load_n(&place, __ATOMIC_ACQUIRE);
}

// Sequentially consistent: whoever stores and then looks whether somebody sleeps must not see the past.
template <class T>
void store(T& place, T value) {
    __atomic_store_n(&place, value, __ATOMIC_SEQ_CST);
}

template <class T>
T min(T a, T b) {
    return a < b ? a : b;
}

template <class T>
T max(T a, T b) {
    return a < b ? b : a;
}

inline u64 round_up(u64 n, u64 unit) {
    return (n + unit - 1) / unit * unit;
}

inline u64 divide_up(u64 n, u64 by) {
    return (n + by - 1) / by;
}
