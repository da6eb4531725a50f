// RMS norm and its gradient (Zhang and Sennrich, 2019). One block for each row, whose threads take a vector at a time;
// the weight is in float.

struct RmsNorm {
    const element* x;
    const float* weight;
    element* y;
    u32 width;
    float eps;
};

KERNEL(rms_norm, RmsNorm) {
    const u32 width = arguments.width, first = threadIdx.x * VECTOR, stride = blockDim.x * VECTOR;
    const u64 row = (u64)blockIdx.x * width;
    const element* x = arguments.x + row;
    float squares = 0.0f;
    for (u32 at = first; at < width; at += stride) {
        const Vector xs = load_vector(x, at, width);
        UNROLL for (u32 i = 0; i < VECTOR; i++) squares += wide(xs.values[i]) * wide(xs.values[i]);
    }
    const float inverse = 1.0f / sqrtf(block_sum(squares) / width + arguments.eps);
    for (u32 at = first; at < width; at += stride) {
        const Vector xs = load_vector(x, at, width);
        const Floats weights = load_floats(arguments.weight, at, width);
        Vector y;
        UNROLL for (u32 i = 0; i < VECTOR; i++) y.values[i] = narrow(wide(xs.values[i]) * inverse * weights.values[i]);
        store_vector(arguments.y + row, at, width, y);
    }
}

struct RmsNormBackward {
    const element* x;
    const float* weight;
    const element* dy;
    const element* residual; // Added to dx; or null.
    element* dx;
    u32 width;
    float eps;
};

// With r = 1 / rms(x) and g = dy · weight: dx = r · g − x · r³ · mean(g · x).
KERNEL(rms_norm_backward, RmsNormBackward) {
    const u32 width = arguments.width, first = threadIdx.x * VECTOR, stride = blockDim.x * VECTOR;
    const u64 row = (u64)blockIdx.x * width;
    const element *x = arguments.x + row, *dy = arguments.dy + row;
    float squares = 0.0f, products = 0.0f;
    for (u32 at = first; at < width; at += stride) {
        const Vector xs = load_vector(x, at, width), dys = load_vector(dy, at, width);
        const Floats weights = load_floats(arguments.weight, at, width);
        UNROLL for (u32 i = 0; i < VECTOR; i++) {
            squares += wide(xs.values[i]) * wide(xs.values[i]);
            products += wide(dys.values[i]) * weights.values[i] * wide(xs.values[i]);
        }
    }
    const float inverse = 1.0f / sqrtf(block_sum(squares) / width + arguments.eps);
    const float shared = block_sum(products) / width * inverse * inverse * inverse;
    for (u32 at = first; at < width; at += stride) {
        const Vector xs = load_vector(x, at, width), dys = load_vector(dy, at, width);
        const Floats weights = load_floats(arguments.weight, at, width);
        Vector dx = {};
        if (arguments.residual != 0) dx = load_vector(arguments.residual + row, at, width);
        UNROLL for (u32 i = 0; i < VECTOR; i++) {
            const float own = wide(dys.values[i]) * weights.values[i] * inverse - wide(xs.values[i]) * shared;
            dx.values[i] = narrow(arguments.residual != 0 ? wide(dx.values[i]) + own : own);
        }
        store_vector(arguments.dx + row, at, width, dx);
    }
}
