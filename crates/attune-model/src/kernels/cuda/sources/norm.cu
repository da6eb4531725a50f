// RMS norm (Zhang and Sennrich, 2019) and layer norm (Ba et al., 2016), and their gradients. One block for each row, whose
// threads take a vector at a time; weight and bias are in float.

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

struct LayerNorm {
    const element* x;
    const float* weight;
    const float* bias; // Or null.
    element* y;
    u32 width;
    float eps;
};

// The mean of a row, and 1 / its deviation.
struct Moments {
    float mean, inverse;
};

// Returns the moments of the block's row: the variance is of what is left after the mean, so that a large mean costs no
// digits.
__device__ inline Moments moments_of(const element* x, u32 width, float eps) {
    const u32 first = threadIdx.x * VECTOR, stride = blockDim.x * VECTOR;
    float sum = 0.0f, squares = 0.0f;
    for (u32 at = first; at < width; at += stride) {
        const Vector xs = load_vector(x, at, width);
        UNROLL for (u32 i = 0; i < VECTOR; i++) sum += wide(xs.values[i]);
    }
    const float mean = block_sum(sum) / width;
    for (u32 at = first; at < width; at += stride) {
        const Vector xs = load_vector(x, at, width);
        // Beyond the end there are zeros, which are not the mean.
        UNROLL for (u32 i = 0; i < VECTOR; i++) {
            const float centered = at + i < width ? wide(xs.values[i]) - mean : 0.0f;
            squares += centered * centered;
        }
    }
    return Moments{mean, 1.0f / sqrtf(block_sum(squares) / width + eps)};
}

KERNEL(layer_norm, LayerNorm) {
    const u32 width = arguments.width, first = threadIdx.x * VECTOR, stride = blockDim.x * VECTOR;
    const u64 row = (u64)blockIdx.x * width;
    const element* x = arguments.x + row;
    const Moments moments = moments_of(x, width, arguments.eps);
    for (u32 at = first; at < width; at += stride) {
        const Vector xs = load_vector(x, at, width);
        const Floats weights = load_floats(arguments.weight, at, width);
        Floats biases = {};
        if (arguments.bias != 0) biases = load_floats(arguments.bias, at, width);
        Vector y;
        UNROLL for (u32 i = 0; i < VECTOR; i++)
            y.values[i] = narrow((wide(xs.values[i]) - moments.mean) * moments.inverse * weights.values[i] + biases.values[i]);
        store_vector(arguments.y + row, at, width, y);
    }
}

struct LayerNormBackward {
    const element* x;
    const float* weight;
    const element* dy;
    const element* residual; // Added to dx; or null.
    element* dx;
    u32 width;
    float eps;
};

// With n = (x − mean) / deviation and g = dy · weight: dx = (g − mean(g) − n · mean(g · n)) / deviation.
KERNEL(layer_norm_backward, LayerNormBackward) {
    const u32 width = arguments.width, first = threadIdx.x * VECTOR, stride = blockDim.x * VECTOR;
    const u64 row = (u64)blockIdx.x * width;
    const element *x = arguments.x + row, *dy = arguments.dy + row;
    const Moments moments = moments_of(x, width, arguments.eps);
    float sum = 0.0f, products = 0.0f;
    for (u32 at = first; at < width; at += stride) {
        const Vector xs = load_vector(x, at, width), dys = load_vector(dy, at, width);
        const Floats weights = load_floats(arguments.weight, at, width);
        // Beyond the end g is zero.
        UNROLL for (u32 i = 0; i < VECTOR; i++) {
            const float g = wide(dys.values[i]) * weights.values[i];
            sum += g;
            products += g * ((wide(xs.values[i]) - moments.mean) * moments.inverse);
        }
    }
    const float mean = block_sum(sum) / width, along = block_sum(products) / width;
    for (u32 at = first; at < width; at += stride) {
        const Vector xs = load_vector(x, at, width), dys = load_vector(dy, at, width);
        const Floats weights = load_floats(arguments.weight, at, width);
        Vector dx = {};
        if (arguments.residual != 0) dx = load_vector(arguments.residual + row, at, width);
        UNROLL for (u32 i = 0; i < VECTOR; i++) {
            const float normed = (wide(xs.values[i]) - moments.mean) * moments.inverse;
            const float own = (wide(dys.values[i]) * weights.values[i] - mean - normed * along) * moments.inverse;
            dx.values[i] = narrow(arguments.residual != 0 ? wide(dx.values[i]) + own : own);
        }
        store_vector(arguments.dx + row, at, width, dx);
    }
}
