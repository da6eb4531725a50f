// Definitions that all kernels share. They precede each kernel when it is compiled, at run time with NVRTC and without
// headers, for one ELEMENT: float, bf16 or f16. Arithmetic is in float throughout; memory holds elements.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};

typedef ELEMENT element;
// The type that matrix units take, bf16 or f16: ELEMENT if it is one of them.
typedef HALF half_element;

const u32 WARP = 32;
const u32 WHOLE_WARP = 0xffffffffu;
#define INFINITE __uint_as_float(0x7f800000u)

// Unrolls loops over registers, which have no addresses.
#define UNROLL _Pragma("unroll")

// A kernel takes one structure of arguments by value, so that its launcher needs to know only the bytes. Further
// attributes for the compiler may follow.
#ifndef KERNEL
#define KERNEL(name, Arguments, ...) extern "C" __global__ void __VA_ARGS__ name(const __grid_constant__ Arguments arguments)
#endif

__device__ inline float wide(float x) { return x; }
__device__ inline float wide(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
#ifndef EMULATED
__device__ inline float wide(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
__device__ inline u16 narrow_f16(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
#else
inline float wide(f16 x) { return emulator::wide_f16(x.bits); }
inline u16 narrow_f16(float x) { return emulator::narrow_f16(x); }
#endif

template <typename T> struct Narrow;
template <> struct Narrow<float> {
    static __device__ inline float of(float x) { return x; }
};
template <> struct Narrow<bf16> {
    // Rounds to the nearest, ties to even; NaN stays NaN.
    static __device__ inline bf16 of(float x) {
#if !defined(EMULATED) && __CUDA_ARCH__ >= 800
        u16 bits;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
        return bf16{bits};
#else
        u32 bits = __float_as_uint(x);
        if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16{(u16)0x7fff};
        return bf16{(u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
#endif
    }
};
template <> struct Narrow<f16> {
    static __device__ inline f16 of(float x) { return f16{narrow_f16(x)}; }
};
__device__ inline element narrow(float x) { return Narrow<element>::of(x); }

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Activations of MLPs, by their numbers. Silu, 0, is x · σ(x); gelu with a tanh is x · σ(2 √(2/π) (x + 0.044715 x³)), since
// ½(1 + tanh u) = σ(2u); gelu is x · Φ(x), with Φ the share of a normal distribution below x; relu is max(x, 0).
const u32 GELU_TANH = 1, GELU = 2, RELU = 3;
const float TANH_SLOPE = 1.5957691216f, TANH_CUBE = 0.044715f;

// Returns activation(x) / x, the part of `x` that is left.
__device__ inline float share_of(float x, u32 activation) {
    if (activation == RELU) return x <= 0.0f ? 0.0f : 1.0f;
    if (activation == GELU) return 0.5f * erfcf(x * -0.7071067812f);
    return sigmoid(activation == GELU_TANH ? TANH_SLOPE * (x + TANH_CUBE * x * x * x) : x);
}

// Returns the slope of the activation at `x`, given its share s there: s + x · s', where s' is σ(1 − σ) z' for σ(z), and for
// gelu the normal density.
__device__ inline float slope_of(float x, float share, u32 activation) {
    if (activation == RELU) return share;
    if (activation == GELU) return share + x * 0.3989422804f * expf(-0.5f * x * x);
    const float inner = activation == GELU_TANH ? TANH_SLOPE * (1.0f + 3.0f * TANH_CUBE * x * x) : 1.0f;
    return share * (1.0f + x * inner * (1.0f - share));
}

// Returns activation(gate) · up, to the same bit in every kernel.
__device__ inline element gated_of(element gate, element up, u32 activation) {
    return narrow(wide(gate) * share_of(wide(gate), activation) * wide(up));
}

// Returns cap · tanh(x / cap); x without a cap, which is 0.
__device__ inline float capped(float x, float cap) { return cap == 0.0f ? x : cap * tanhf(x / cap); }

// Returns the slope of the cap where it gives `y`.
__device__ inline float cap_slope(float y, float cap) { return cap == 0.0f ? 1.0f : 1.0f - y / cap * (y / cap); }

// Sixteen bytes of elements, the most that a thread reads at a time.
const u32 VECTOR = 16 / sizeof(element);
struct __align__(16) Vector {
    element values[VECTOR];
};
struct __align__(16) Floats {
    float values[VECTOR];
};

__device__ inline bool begins_vector(const void* place) { return (u64)place % 16 == 0; }

// Loads as many of `count` elements or floats as a vector has, from `at` on; zeros beyond the end.
template <typename Many, typename One> __device__ inline Many load_many(const One* from, u64 at, u64 count) {
    if (at + VECTOR <= count && begins_vector(from + at)) return *(const Many*)(from + at);
    Many many = {};
    for (u32 i = 0; i < VECTOR && at + i < count; i++) many.values[i] = from[at + i];
    return many;
}
__device__ inline Vector load_vector(const element* from, u64 at, u64 count) { return load_many<Vector>(from, at, count); }
__device__ inline Floats load_floats(const float* from, u64 at, u64 count) { return load_many<Floats>(from, at, count); }

__device__ inline void store_vector(element* to, u64 at, u64 count, const Vector& vector) {
    if (at + VECTOR <= count && begins_vector(to + at)) {
        *(Vector*)(to + at) = vector;
        return;
    }
    for (u32 i = 0; i < VECTOR && at + i < count; i++) to[at + i] = vector.values[i];
}

__device__ inline u32 lane_of_warp() { return threadIdx.x % WARP; }

__device__ inline float warp_sum(float x) {
    for (u32 other = WARP / 2; other > 0; other /= 2) x += __shfl_xor_sync(WHOLE_WARP, x, other);
    return x;
}

__device__ inline float warp_max(float x) {
    for (u32 other = WARP / 2; other > 0; other /= 2) x = fmaxf(x, __shfl_xor_sync(WHOLE_WARP, x, other));
    return x;
}

// Returns the sum over a block of whole warps to all its threads.
__device__ inline float block_sum(float x) {
    __shared__ float of_warps[WARP];
    x = warp_sum(x);
    __syncthreads(); // Threads may still read the previous sum.
    if (lane_of_warp() == 0) of_warps[threadIdx.x / WARP] = x;
    __syncthreads();
    x = lane_of_warp() < blockDim.x / WARP ? of_warps[lane_of_warp()] : 0.0f;
    return warp_sum(x);
}

// Returns a · b over `length` elements, computed by the lanes of a warp together.
__device__ inline float warp_dot(const element* a, const element* b, u32 length) {
    float sum = 0.0f;
    if (length % VECTOR == 0) {
        const Vector* as = (const Vector*)a;
        const Vector* bs = (const Vector*)b;
        for (u32 i = lane_of_warp(); i < length / VECTOR; i += WARP) {
            Vector x = as[i], y = bs[i];
            for (u32 j = 0; j < VECTOR; j++) sum += wide(x.values[j]) * wide(y.values[j]);
        }
    } else {
        for (u32 i = lane_of_warp(); i < length; i += WARP) sum += wide(a[i]) * wide(b[i]);
    }
    return warp_sum(sum);
}
