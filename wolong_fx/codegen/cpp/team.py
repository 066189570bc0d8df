"""The thread team: one parallel region a call, flags for a barrier in the arena's header, and the C entry
points.
"""

from __future__ import annotations

HEADER_BYTES = 4096
EPOCH, PARTING, FAILURE, FLAGS = 0, 8, 64, 128
"""Byte offsets in the arena's header: barriers passed so far, the barrier after which the first thread goes
on alone, the first failed check, a flag for each thread.
"""


def largest_team() -> int:
    """Threads that the arena's header has flags for."""
    return (HEADER_BYTES - FLAGS) // 64


def team_of(threads: int) -> int:
    """The team that tables are cut for where `threads` are wanted."""
    return max(1, min(threads, largest_team()))


def flag_bytes(threads: int) -> int:
    """Distance of two threads' flags: two cache lines, which processors fetch in pairs, unless there are
    many.
    """
    return 128 if threads <= (HEADER_BYTES - FLAGS) // 128 else 64


TEAM = """\
struct WolongHost {
  struct Time { long seconds, nanoseconds; };
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
  int (*thread_num)(void);
  int (*yield)(void);
  int (*clock)(int, Time*);
  int monotonic;
};
static const WolongHost* host;

static const i64 FOREVER = (i64)(~0ull >> 1);

static i64 now(void) {
  WolongHost::Time time;
  host->clock(host->monotonic, &time);
  return time.seconds * 1000000000l + time.nanoseconds;
}

// Where one thread of a call stands. It runs the parts of the threads [first, last) of the tables: its own,
// or, when the team is smaller than the tables were cut for, several.
struct Worker {
  char* const* args;
  i64 loop[LOOPS];
  i32 number, team, first, last;
  i64 epoch;     // barriers passed; grows from call to call, so flags need no reset
  i64 patience;  // nanoseconds that it goes on to wait for others in this call
};

INLINE i64* word(const Worker* w, i32 offset) { return (i64*)(w->args[0] + offset); }
INLINE i64* flag(const Worker* w, i32 thread) { return word(w, FLAGS + thread * FLAG_BYTES); }
INLINE bool has_come(const Worker* w, i32 thread) {
  return __atomic_load_n(flag(w, thread), __ATOMIC_ACQUIRE) >= w->epoch;
}

// Somebody has no processor: let others run. The first thread, which the caller waits for, does so until its
// patience ends. The team then parts at the next barrier: those who pass this one may not know yet. It is the
// first thread alone that tells, once, before its flag is up there, so that all who pass that one do know.
NOINLINE void wait_long(Worker* w, i32 thread) {
  const i64 start = now();
  while (!has_come(w, thread)) {
    host->yield();
    if (now() - start > w->patience) {
      __atomic_store_n(word(w, PARTING), w->epoch + 1, __ATOMIC_RELAXED);
      w->patience = FOREVER;
    }
  }
  w->patience -= now() - start;
}

NOINLINE void wait_for_all(Worker* w) {
  for (i32 t = 0; t < w->team; t++)
    for (i32 spins = 0; !has_come(w, t);) {
#if defined __x86_64__ || defined __i386__
      __builtin_ia32_pause();
#elif defined __aarch64__
      asm volatile("yield");
#endif
      if (++spins > 2000) wait_long(w, t);
    }
}

INLINE bool is_parting(const Worker* w) {
  return __atomic_load_n(word(w, PARTING), __ATOMIC_RELAXED) == w->epoch;
}

// Everyone raises a flag of their own and waits for all others'. Where the team parts the first thread does
// the rest of the call; the others, which are not even waited for again, have no more to do.
NOINLINE void barrier(Worker* w) {
  w->epoch++;
  if (w->team == 1) return;
  __atomic_store_n(flag(w, w->number), w->epoch, __ATOMIC_RELEASE);
  if (w->number == 0 || !is_parting(w)) wait_for_all(w);
  if (!is_parting(w)) return;
  w->team = 1;
  w->first = 0;
  w->last = w->number == 0 ? THREADS : 0;
}

NOINLINE void run_stages(Worker* w, i32 begin, i32 end) {
  for (i32 s = begin; s < end; s++) {
    for (i32 r = STARTS[s * THREADS + w->first]; r < STARTS[s * THREADS + w->last]; r++)
      FUNCTIONS[RUNS[r].function](w->args, BINDINGS + RUNS[r].bindings, w->loop, RUNS[r].first, RUNS[r].last);
    if (BARRIERS[s]) barrier(w);
  }
}
"""

BACKWARDS = """\
// The same blocks last to first: what the trip before read last is still in the cache.
NOINLINE void run_stages_backwards(Worker* w, i32 begin, i32 end) {
  for (i32 s = begin; s < end; s++) {
    for (i32 r = STARTS[s * THREADS + w->last] - 1; r >= STARTS[s * THREADS + w->first]; r--)
      for (i64 b = RUNS[r].last - 1; b >= RUNS[r].first; b--)
        FUNCTIONS[RUNS[r].function](w->args, BINDINGS + RUNS[r].bindings, w->loop, b, b + 1);
    if (BARRIERS[s]) barrier(w);
  }
}
"""

ENTRY_POINTS = """\
struct Launch { char* const* args; i64 before, after, patience; };

static void work(Launch* launch, i32 number, i32 team) {
  const i32 first = THREADS * number / team, last = THREADS * (number + 1) / team;
  const i64 patience = number == 0 ? launch->patience * 1000 : FOREVER;
  Worker w = {launch->args, {}, number, team, first, last, launch->before, patience};
  run_program(&w);
  if (number == 0) launch->after = w.epoch;
}
static void work_in_team(void* launch) { work((Launch*)launch, host->thread_num(), THREADS); }

extern "C" const int wolong_abi = 2;
extern "C" void wolong_init(const WolongHost* given) { host = given; }
extern "C" long wolong_run(void** args, int threads, int patience) {
  char* const header = (char*)args[0];
  *(i64*)(header + FAILURE) = 0;
  *(i64*)(header + PARTING) = 0;
  Launch launch = {(char* const*)args, *(i64*)(header + EPOCH), 0, patience};
  if (threads > 1 && THREADS > 1) {
    host->parallel(work_in_team, &launch, THREADS, 0);
    *(i64*)(header + EPOCH) = launch.after;
  } else {
    work(&launch, 0, 1);
  }
  return *(i64*)(header + FAILURE);
}
"""


def emit_layout(threads: int, loops: int) -> str:
    """Constants that the team's text is written in terms of."""
    return (
        f"enum {{ THREADS = {threads}, LOOPS = {max(loops, 1)} }};\n"
        "// Bytes in the arena's header: where these are, and how far apart the threads' flags.\n"
        f"enum {{ EPOCH = {EPOCH}, PARTING = {PARTING}, FAILURE = {FAILURE}, FLAGS = {FLAGS}, "
        f"FLAG_BYTES = {flag_bytes(threads)} }};\n"
    )
