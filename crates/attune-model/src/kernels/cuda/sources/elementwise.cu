// Rotary positions, activations with and without a gate and their gradients, and logits: one thread for each pair, or
// for each vector of elements.

struct Heads {
    const element* x; // [rows, heads, 2 · half_head]
    element* y;
    u64 pairs;
    u64 in_row; // Heads in a row.
};

struct Rope {
    // Queries and keys.
    Heads both[2];
    const float* cos; // [rows, half]
    const float* sin;
    u32 half;
    u32 half_head;
    // 1 rotates forwards, −1 backwards.
    float direction;
    u32 padding;
};

// Rotates the halves of a head's first 2 · half elements against each other; the others are kept.
KERNEL(rope, Rope) {
    u64 pair = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    const u32 second_one = pair >= arguments.both[0].pairs;
    if (second_one) pair -= arguments.both[0].pairs;
    const Heads& heads = arguments.both[second_one];
    if (pair >= heads.pairs) return;
    const u64 head = pair / arguments.half_head, place = pair % arguments.half_head;
    if (place >= arguments.half) {
        const u64 kept = 2 * pair;
        heads.y[kept] = heads.x[kept];
        heads.y[kept + 1] = heads.x[kept + 1];
        return;
    }
    const u64 angle = head / heads.in_row * arguments.half + place;
    const u64 first = head * 2 * arguments.half_head + place, second = first + arguments.half;
    const float cos = arguments.cos[angle], sin = arguments.sin[angle] * arguments.direction;
    const float a = wide(heads.x[first]), b = wide(heads.x[second]);
    heads.y[first] = narrow(a * cos - b * sin);
    heads.y[second] = narrow(b * cos + a * sin);
}

struct Gated {
    const element* gate;
    const element* up;
    element* y;
    u64 count;
    u32 activation;
};

KERNEL(gated, Gated) {
    const u64 at = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR, count = arguments.count;
    if (at >= count) return;
    const Vector gate = load_vector(arguments.gate, at, count), up = load_vector(arguments.up, at, count);
    Vector y;
    UNROLL for (u32 i = 0; i < VECTOR; i++) y.values[i] = gated_of(gate.values[i], up.values[i], arguments.activation);
    store_vector(arguments.y, at, count, y);
}

struct GatedBackward {
    const element* gate;
    const element* up;
    const element* dy;
    element* dgate;
    element* dup;
    u64 count;
    u32 activation;
};

// With the activation a: dgate = dy · up · a'(gate), dup = dy · a(gate).
KERNEL(gated_backward, GatedBackward) {
    const u64 at = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR, count = arguments.count;
    if (at >= count) return;
    const Vector gates = load_vector(arguments.gate, at, count), ups = load_vector(arguments.up, at, count);
    const Vector dys = load_vector(arguments.dy, at, count);
    Vector dgate, dup;
    UNROLL for (u32 i = 0; i < VECTOR; i++) {
        const float gate = wide(gates.values[i]), dy = wide(dys.values[i]);
        const float share = share_of(gate, arguments.activation);
        dgate.values[i] = narrow(dy * wide(ups.values[i]) * slope_of(gate, share, arguments.activation));
        dup.values[i] = narrow(dy * gate * share);
    }
    store_vector(arguments.dgate, at, count, dgate);
    store_vector(arguments.dup, at, count, dup);
}

struct Activated {
    const element* x;
    const element* dy; // The gradient of the result; null forwards.
    element* y;        // The result; backwards the gradient of x.
    u64 count;
    u32 activation;
};

KERNEL(activated, Activated) {
    const u64 at = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR, count = arguments.count;
    if (at >= count) return;
    const Vector xs = load_vector(arguments.x, at, count);
    Vector y;
    UNROLL for (u32 i = 0; i < VECTOR; i++) {
        const float x = wide(xs.values[i]);
        y.values[i] = narrow(x * share_of(x, arguments.activation));
    }
    store_vector(arguments.y, at, count, y);
}

KERNEL(activated_backward, Activated) {
    const u64 at = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR, count = arguments.count;
    if (at >= count) return;
    const Vector xs = load_vector(arguments.x, at, count), dys = load_vector(arguments.dy, at, count);
    Vector dx;
    UNROLL for (u32 i = 0; i < VECTOR; i++) {
        const float x = wide(xs.values[i]), share = share_of(x, arguments.activation);
        dx.values[i] = narrow(wide(dys.values[i]) * slope_of(x, share, arguments.activation));
    }
    store_vector(arguments.y, at, count, dx);
}

struct ToLogits {
    const element* products;
    element* logits;
    u64 count;
    float scale;
    float cap; // 0 for none.
};

KERNEL(to_logits, ToLogits) {
    const u64 at = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR, count = arguments.count;
    if (at >= count) return;
    const Vector products = load_vector(arguments.products, at, count);
    Vector logits;
    UNROLL for (u32 i = 0; i < VECTOR; i++) logits.values[i] = narrow(capped(wide(products.values[i]) * arguments.scale, arguments.cap));
    store_vector(arguments.logits, at, count, logits);
}
