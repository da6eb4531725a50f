// CUDA's part of C++ on the CPU, so that kernels can be tested where there is no GPU: every thread of a block is a fiber, the
// blocks run one after the other. Only what the kernels use is here. It stands before the source when it is compiled.
//
// Fibers run in the order of the threads, or in the opposite one: what depends on the order lacks a barrier.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <setjmp.h>
#include <ucontext.h>
#include <vector>

#define __device__
#define __global__
#define __grid_constant__
#define __shared__ static
#define __align__(bytes) alignas(bytes)
#define __forceinline__ inline

struct Index {
    unsigned x, y, z;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

// The emulator's own memory is no kernel's: sanitizers leave it out.
#define INTERNAL __attribute__((noinline, no_sanitize("thread")))

const size_t STACK = 64 << 10;
const unsigned LANES = 32, MOST_WARPS = 32;

#ifdef __SANITIZE_THREAD__

// A fiber is a thread to the sanitizer: what no barrier puts in an order is a race. Only it knows such fibers by name, and it is
// told of each change between them.
extern "C" {
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void* __tsan_get_current_fiber();
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
}
const unsigned UNORDERED = 1;

struct Fiber {
    ucontext_t context;
    void* thread = __tsan_create_fiber(0);
    std::unique_ptr<char[]> stack{new char[STACK]};
    bool over = false;
    ~Fiber() { __tsan_destroy_fiber(thread); }
};
// It knows 8,128 threads at most, of all kernels together.
const bool FIBERS_ARE_KEPT = false;

static ucontext_t scheduler;
static void* host;
static Fiber* running;

inline void acquire(void* order) { __tsan_acquire(order); }
inline void release(void* order) { __tsan_release(order); }

INTERNAL void leave() {
    Fiber* fiber = running;
    __tsan_switch_to_fiber(host, UNORDERED);
    swapcontext(&fiber->context, &scheduler);
}

INTERNAL void enter(Fiber& fiber) {
    running = &fiber;
    host = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fiber.thread, UNORDERED);
    swapcontext(&scheduler, &fiber.context);
}

#else

// A fiber begins with `setcontext` and then lives for many blocks; from there on `_longjmp` leads to and from it, which unlike
// `swapcontext` asks nothing of the system.
struct Fiber {
    ucontext_t context;
    jmp_buf place;
    std::unique_ptr<char[]> stack{new char[STACK]};
    bool begun = false, over = false;
};
const bool FIBERS_ARE_KEPT = true;

static jmp_buf scheduler;
static Fiber* running;

inline void acquire(void*) {}
inline void release(void*) {}

inline void leave() {
    if (_setjmp(running->place) == 0) _longjmp(scheduler, 1);
}

inline void enter(Fiber& fiber) {
    running = &fiber;
    if (_setjmp(scheduler) != 0) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
}

#endif

struct Barrier {
    unsigned expected = 0, arrived = 0;
    unsigned long generation = 0;
    // What the sanitizer knows this barrier and the one after it by: those who left may arrive anew before others have left.
    char orders[2] = {0, 0};
};

static std::vector<std::unique_ptr<Fiber>> fibers;
static Barrier of_block, of_warps[MOST_WARPS];
static unsigned long long lanes[MOST_WARPS][LANES];
static std::function<void()> body;
static unsigned long progress;
static char beginning, end;
static bool backwards;

// Waits for all others. Only what has CUDA's word for it puts memory in an order: barriers do, exchanges of registers do not.
INTERNAL void wait(Barrier& barrier, bool ordered = false) {
    progress++;
    const unsigned long generation = barrier.generation;
    char* order = &barrier.orders[generation % 2];
    if (ordered) release(order);
    if (++barrier.arrived == barrier.expected) {
        barrier.arrived = 0;
        barrier.generation++;
    }
    while (barrier.generation == generation) leave();
    if (ordered) acquire(order);
}

// Copies on the side. With the threads in one order each is made as late as a wait for it allows, in the other at once: what takes
// them to be there too early, or overwrites what is still read, is wrong in one of them.
struct Copy {
    void* to;
    const void* from;
    size_t bytes;
    bool is_there;
};
static std::vector<Copy> copies[MOST_WARPS * LANES];
static size_t grouped[MOST_WARPS * LANES];

inline void make(const Copy& copy) {
    if (copy.is_there) memcpy(copy.to, copy.from, copy.bytes);
    else memset(copy.to, 0, copy.bytes);
}

inline void copy_ahead(const Copy& copy) {
    if ((size_t)copy.to % copy.bytes != 0 || (size_t)copy.from % copy.bytes != 0) {
        fprintf(stderr, "a copy from or to a place that is no multiple of its size\n");
        abort();
    }
    if (backwards) make(copy);
    else copies[threadIdx.x].push_back(copy);
}

inline void wait_for_groups() {
    std::vector<Copy>& mine = copies[threadIdx.x];
    for (size_t i = 0; i < grouped[threadIdx.x]; i++) make(mine[i]);
    mine.erase(mine.begin(), mine.begin() + grouped[threadIdx.x]);
    grouped[threadIdx.x] = 0;
}

inline void check_copies() {
    if (copies[threadIdx.x].empty()) return;
    fprintf(stderr, "a thread ended before its copies\n");
    abort();
}

INTERNAL void live() {
    for (;;) {
        acquire(&beginning);
        body();
        check_copies();
        release(&end);
        running->over = true;
        progress++;
        leave();
    }
}

INTERNAL void run_block(bool reversed) {
    const unsigned threads = blockDim.x;
    backwards = reversed;
    release(&beginning);
    of_block = Barrier{threads};
    for (unsigned warp = 0; warp * LANES < threads; warp++) of_warps[warp] = Barrier{std::min(LANES, threads - warp * LANES)};
    while (fibers.size() < threads) {
        fibers.emplace_back(new Fiber);
        Fiber& fiber = *fibers.back();
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = STACK;
        makecontext(&fiber.context, live, 0);
    }
    for (unsigned i = 0; i < threads; i++) fibers[i]->over = false;
    for (bool any = true; any;) {
        any = false;
        const unsigned long before = progress;
        for (unsigned i = 0; i < threads; i++) {
            const unsigned thread = reversed ? threads - 1 - i : i;
            if (fibers[thread]->over) continue;
            any = true;
            threadIdx = Index{thread, 0, 0};
            enter(*fibers[thread]);
        }
        if (any && progress == before) {
            fprintf(stderr, "the threads of a block wait for one that never comes\n");
            abort();
        }
    }
    acquire(&end);
}

// The value of `source` in this thread's warp.
template <typename T> INTERNAL T exchange(T value, unsigned source) {
    const unsigned warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    memcpy(&lanes[warp][lane], &value, sizeof(T));
    wait(of_warps[warp]);
    memcpy(&value, &lanes[warp][source], sizeof(T));
    wait(of_warps[warp]);
    return value;
}

} // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::of_block, true); }
inline void __syncwarp() { emulator::wait(emulator::of_warps[threadIdx.x / emulator::LANES], true); }
template <typename T> T __shfl_sync(unsigned, T value, unsigned source) { return emulator::exchange(value, source % emulator::LANES); }
template <typename T> T __shfl_xor_sync(unsigned, T value, unsigned mask) {
    return emulator::exchange(value, (threadIdx.x % emulator::LANES) ^ mask);
}

inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
using std::min;
using std::max;

namespace emulator {

inline float wide_bf16(unsigned short bits) { return __uint_as_float((unsigned)bits << 16); }

inline float wide_f16(unsigned short bits) {
    const unsigned exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float size = exponent == 31   ? (fraction ? NAN : INFINITY)
                       : exponent == 0 ? ldexpf((float)fraction, -24)
                                       : ldexpf((float)(1024 + fraction), (int)exponent - 25);
    return bits >> 15 ? -size : size;
}

// To the nearest, ties to even, as the default rounding of the floating-point unit has it.
inline unsigned short narrow_f16(float x) {
    const unsigned short sign = __float_as_uint(x) >> 31 << 15;
    if (std::isnan(x)) return 0x7fff;
    const float size = fabsf(x);
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size == 0.0f) return sign;
    int exponent;
    frexpf(size, &exponent);
    // The last of eleven digits, or of what is left of them below 2^-14.
    const int last = std::max(exponent - 11, -24);
    const unsigned digits = (unsigned)nearbyintf(ldexpf(size, -last));
    // What was rounded up to the next power of two carries into the exponent by itself.
    return sign | (unsigned short)((unsigned)(last + 24) * 1024 + digits);
}

} // namespace emulator

// Matrix units, see the PTX manual for who has what of a fragment.
namespace emulator {

struct Fragments {
    unsigned a[4], b[2];
};
static Fragments fragments[MOST_WARPS][LANES];
static const unsigned short* matrix_rows[MOST_WARPS][LANES];

#define NAMED_(prefix, name) prefix##name
#define NAMED(prefix, name) NAMED_(prefix, name)
inline float half_of(unsigned pair, unsigned second) { return NAMED(wide_, HALF)((unsigned short)(second ? pair >> 16 : pair)); }

INTERNAL void announce(const void* row) {
    matrix_rows[threadIdx.x / LANES][threadIdx.x % LANES] = (const unsigned short*)row;
    wait(of_warps[threadIdx.x / LANES]);
}

INTERNAL const unsigned short* announced(unsigned lane) { return matrix_rows[threadIdx.x / LANES][lane]; }

inline void load(unsigned* to, const void* row, bool transposed) {
    if ((size_t)row % 16 != 0) {
        fprintf(stderr, "a row of a matrix does not begin at a multiple of 16 bytes\n");
        abort();
    }
    announce(row);
    const unsigned lane = threadIdx.x % LANES, outer = lane / 4, inner = lane % 4 * 2;
    for (unsigned matrix = 0; matrix < 4; matrix++) {
        const auto row_of = [&](unsigned i) { return announced(matrix * 8 + i); };
        const unsigned first = transposed ? row_of(inner)[outer] : row_of(outer)[inner];
        const unsigned second = transposed ? row_of(inner + 1)[outer] : row_of(outer)[inner + 1];
        to[matrix] = first | second << 16;
    }
    wait(of_warps[threadIdx.x / LANES]);
}

} // namespace emulator

template <typename T> void copy_ahead(T* to, const T* from, bool is_there) { emulator::copy_ahead({to, from, sizeof(T), is_there}); }
inline void end_group() { emulator::grouped[threadIdx.x] = emulator::copies[threadIdx.x].size(); }
inline void wait_for_groups() { emulator::wait_for_groups(); }

inline void load_matrices(unsigned* to, const void* row) { emulator::load(to, row, false); }
inline void load_transposed(unsigned* to, const void* row) { emulator::load(to, row, true); }

INTERNAL void multiply(float* c, const unsigned* a, unsigned b0, unsigned b1) {
    using namespace emulator;
    const unsigned warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    fragments[warp][lane] = Fragments{{a[0], a[1], a[2], a[3]}, {b0, b1}};
    wait(of_warps[warp]);
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = lane / 4, column = lane % 4 * 2 + i % 2;
        for (unsigned k = 0; k < 16; k++) {
            const unsigned of_left = fragments[warp][row * 4 + k % 8 / 2].a[i / 2 + k / 8 * 2];
            const unsigned of_right = fragments[warp][column * 4 + k % 8 / 2].b[k / 8];
            c[i] += half_of(of_left, k % 2) * half_of(of_right, k % 2);
        }
    }
    wait(of_warps[warp]);
}

// A kernel becomes a function that runs all its blocks; it returns 1 where the arguments are not those of the source.
#define KERNEL(name, Arguments, ...)                                                                                        \
    static void name##_thread(const Arguments& arguments);                                                                  \
    extern "C" __attribute__((visibility("default"))) int name(const void* bytes, size_t length, unsigned columns,          \
                                                               unsigned rows, unsigned threads, int reversed) {             \
        if (length != sizeof(Arguments)) return 1;                                                                          \
        const Arguments& arguments = *(const Arguments*)bytes;                                                              \
        emulator::body = [&] { name##_thread(arguments); };                                                                 \
        gridDim = Index{columns, rows, 1};                                                                                  \
        blockDim = Index{threads, 1, 1};                                                                                    \
        for (unsigned y = 0; y < rows; y++)                                                                                 \
            for (unsigned x = 0; x < columns; x++) {                                                                        \
                blockIdx = Index{x, y, 0};                                                                                  \
                emulator::run_block(reversed);                                                                              \
            }                                                                                                               \
        if (!emulator::FIBERS_ARE_KEPT) emulator::fibers.clear();                                                           \
        return 0;                                                                                                           \
    }                                                                                                                       \
    static void name##_thread(const Arguments& arguments)
