// Rotary positions and SwiGLU with their gradients: one thread for each pair or element.

struct Rope {
    const element* x;
    const float* cos;
    const float* sin;
    element* y;
    u64 pairs;
    u32 heads;
    u32 half;
    // 1 rotates forwards, −1 backwards.
    float direction;
};

// x and y `[rows, heads, 2 · half]`, cos and sin `[rows, half]`: the halves of a head are rotated against each other.
KERNEL(rope, Rope) {
    const u64 pair = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (pair >= arguments.pairs) return;
    const u64 head = pair / arguments.half, place = pair % arguments.half;
    const u64 angle = head / arguments.heads * arguments.half + place;
    const u64 first = head * 2 * arguments.half + place, second = first + arguments.half;
    const float cos = arguments.cos[angle], sin = arguments.sin[angle] * arguments.direction;
    const float a = wide(arguments.x[first]), b = wide(arguments.x[second]);
    arguments.y[first] = narrow(a * cos - b * sin);
    arguments.y[second] = narrow(b * cos + a * sin);
}

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

struct SwiGlu {
    const element* gate;
    const element* up;
    element* y;
    u64 count;
};

// silu(gate) · up (Shazeer, 2020).
KERNEL(swiglu, SwiGlu) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= arguments.count) return;
    const float gate = wide(arguments.gate[i]);
    arguments.y[i] = narrow(gate * sigmoid(gate) * wide(arguments.up[i]));
}

struct SwiGluBackward {
    const element* gate;
    const element* up;
    const element* dy;
    element* dgate;
    element* dup;
    u64 count;
};

// dgate = dy · up · σ(g)(1 + g(1 − σ(g))), dup = dy · silu(g).
KERNEL(swiglu_backward, SwiGluBackward) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= arguments.count) return;
    const float gate = wide(arguments.gate[i]), dy = wide(arguments.dy[i]), sigma = sigmoid(gate);
    arguments.dgate[i] = narrow(dy * wide(arguments.up[i]) * sigma * (1.0f + gate * (1.0f - sigma)));
    arguments.dup[i] = narrow(dy * gate * sigma);
}
